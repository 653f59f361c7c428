"""results.json: the figures of a run, its verdict, and what was trained on what."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ds_rag import __version__
from ds_rag.data.splits import ways_to_hold_out
from ds_rag.evaluation.evaluator import Evaluation
from ds_rag.evaluation.per_question import TABLE, read_per_question
from ds_rag.index.store import hash_model
from ds_rag.models.sharded import count_of
from ds_rag.run import config_and_results, export
from ds_rag.run.active_run import Run
from ds_rag.run.evaluation_files import BEFORE, Measured
from ds_rag.run.model_cards import warmed
from ds_rag.run.report.parts import dict_of
from ds_rag.run.report.teaching import AUDIT
from ds_rag.run.verdict import Facts, verdict
from ds_rag.runtime import collectives, json_files
from ds_rag.runtime.errors import UserError


def outcome(run: Run, result: Evaluation) -> dict[str, Any]:
    """The content of results.json, except the seconds."""
    config, state, index = run.config, run.state, run.index
    return {
        "before": state.before or {},
        "after": result.metrics,
        "evaluation": {"before": state.before_trust, "after": {}},
        "samples": [asdict(s) for s in result.samples],
        "steps": state.step,
        "best_step": state.best_step,
        "skipped_steps": state.skipped,
        "gated_queries": state.gated,
        "refresh_stall_fraction": round(index.stall_fraction, 6),
        "loop_seconds": round(index.loop_seconds, 1),
        "lm_warmup_steps": config.optim.lm_warmup_steps if warmed(config) else 0,
        "ds_rag": __version__,
        "about": about(run),
    }


def about(run: Run) -> dict[str, Any]:
    """What was trained on what, when, with what: for the report."""
    parts, learning = run.parts, run.parts.engines.learning
    return {
        "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "rows": len(parts.data.train),
        "passages": parts.data.corpus_size - parts.data.added,
        "added": parts.data.added,
        "held_out": len(parts.data.evaluation),
        "models": {
            name: {
                "parameters": count_of(module),
                "trained": name in learning,
                "trained_parameters": count_of(module, trained=True) if name in learning else 0,
            }
            for name, module in parts.engines.modules.items()
        },
        "device": str(parts.device),
        "ranks": collectives.world(),
        "libraries": {name: version(name) for name in ("torch", "transformers", "deepspeed")},
    }


def lexical_lines(run: Run, result: Evaluation) -> dict[str, dict[str, dict[str, float]]]:
    """Retrieval by BM25, and by it and the retriever together, before training and after; all ranks together."""
    before, after = run.state.lexical_before or {}, run.index.evaluator.lexical_lines(result)
    return {name: {"before": before.get(name, {}), "after": values} for name, values in after.items()}


def write_figures(place: Path, results: dict[str, Any], run: Run, result: Evaluation) -> None:
    """results.json, config.json and the results per question, on one rank, beside the models in `place`; what is to be
    known of the last evaluation is added to `results`."""
    config = run.config
    if result.questions is not None:
        hashes = {name: hash_model(place / name) for name in run.parts.engines.modules}
        measured = Measured(result, run.index.evaluator, config)
        results["evaluation"]["after"] = measured.write(hashes, place / export.AFTER)
    results["verdict"] = verdict(facts_of(run, result), str(run.folder)).as_json()
    (place / json_files.RESULTS).write_text(json.dumps(results, indent=1), encoding="utf-8")
    (place / json_files.CONFIG).write_text(config_and_results.configuration_text(config), encoding="utf-8")


def facts_of(run: Run, result: Evaluation) -> Facts:
    """What the verdict is drawn from; on one rank."""
    state, before, audit = run.state, None, {}
    with suppress(UserError):  # a file that somebody has damaged keeps no models from being saved
        before = read_per_question(run.folder / f"{BEFORE}{TABLE}") if state.before is not None else None
    with suppress(UserError):
        audit = json_files.read_json(run.folder / AUDIT, dict, json_files.AGAIN)
    return Facts(
        before,
        result.questions,
        state.step,
        run.config.optim.warmup_steps,
        state.skipped,
        state.gated,
        state.step * run.parts.loader.global_batch,
        tuple(run.watchers.memory["said"]),
        dict_of(audit.get("verdict")).get("advice"),
        "generator" in run.parts.engines.modules,
        ways_to_hold_out(len(run.parts.data.train)),
        run.parts.data.added,
    )
