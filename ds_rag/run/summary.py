"""What a run prints at its beginning, and what it writes at its end: models, index, figures, report."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ds_rag import __version__
from ds_rag.config import RunConfig
from ds_rag.engines.engine_pair import Engines
from ds_rag.evaluation.evaluator import Evaluation
from ds_rag.evaluation.intervals import show_interval
from ds_rag.evaluation.power import needed_line
from ds_rag.evaluation.signature import unlike
from ds_rag.index.store import hash_model
from ds_rag.models.sharded import count_of
from ds_rag.run import config_and_results, export
from ds_rag.run.active_run import Run
from ds_rag.run.assemble import Parts
from ds_rag.run.evaluation_files import Measured
from ds_rag.run.html_report import write_report
from ds_rag.run.lexical_table import COMPARED, lexical_table
from ds_rag.run.model_cards import card, warmed
from ds_rag.run.publish_index import describe_and_publish
from ds_rag.runtime import atomic_folders, collectives, fault_injection, json_files, stop_signals
from ds_rag.runtime.atomic_files import write_complete
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import not_written


def say_beginning(parts: Parts, config: RunConfig, folder: Path, console: Console) -> None:
    """Prints what the run is about to do, in four lines, and writes the resolved configuration to the run's folder."""
    optim, data = config.optim, parts.data
    sizes = {n: count_of(m) / 1e6 for n, m in parts.engines.modules.items()}
    learning = parts.engines.learning
    models = ", ".join(f"{n} {s:.1f}M ({'trained' if n in learning else 'frozen'})" for n, s in sizes.items())
    batch = f"{optim.per_device_train_batch_size} x {optim.gradient_accumulation_steps} x {collectives.world()}"
    console.say(
        f"data       {len(data.train)} rows, {data.corpus_size} passages, {len(data.evaluation)} held-out queries"
    )
    if data.labelled and not config.is_builtin:
        line, few = needed_line([data.cluster_of(data.evaluation[n]) for n in data.labelled])
        console.say(f"{'note: ' * few}{line}", style="yellow" if few else None)
    console.say(f"models     {models}")
    o = config.objective
    beside = {
        "batch": "",
        "index": " (the index supplies {})",
        "both": " (the index supplies {} beside the row's own)",
        "bm25": " (BM25 supplies {})",
        "index,bm25": " (the index and BM25 supply {} in turn)",
    }
    source = beside[o.candidates_from].format(o.index_candidates)
    if o.candidates_by == "generator" and source:
        source = source.removesuffix(")") + ", the generator chooses)"
    console.say(
        f"objective  {o.objective}, {o.candidates} candidates a query{source}; "
        f"{parts.total_steps} steps of {batch} queries (batch x accumulation x ranks) on {parts.device}"
    )
    if parts.retriever.reads_words:
        console.say(f"words      BM25 is in the retriever's scores, with weight {weight_of_words(parts)}")
    console.say(f"run        {folder} (libraries' messages: run.log)")
    if not config.is_builtin:
        for name in ("retriever", "generator"):
            if getattr(config.model, name).startswith("config:") and name in sizes:
                console.say(f"note: the {name} starts untrained, from {getattr(config.model, name)}", style="yellow")
    if collectives.rank() == 0 and not export.exported(folder):  # else config.json belongs to the exported models
        write_complete(folder / json_files.CONFIG, config_and_results.configuration_text(config))


def write_results(run: Run, result: Evaluation, began: float) -> None:
    """Exports the models with their cards, the index, results.json, the results per question and config.json, all at
    once (export.py); writes report.html and prints the outcome. result: that of the exported weights; began:
    time.monotonic() at the start of the run. Raises RunError on every rank if one of them could not write."""
    folder = run.folder
    cards = make_cards(run, result)
    linked = collectives.from_first((folder / export.INDEX).is_symlink())  # perhaps to a disk with more space
    fix = "free some space, then --resume auto, which resumes from the last checkpoint"
    results = outcome(run, result) | {"lexical": lexical_lines(run, result)}
    try:
        with export.staged(folder) as place:
            export_models(place, run.parts.engines, cards)
            model = hash_model(place / "retriever")
            if not linked:
                save_index(run, place / export.INDEX, model)
            results["seconds"] = round(time.monotonic() - began, 1)
            stop_signals.phase("writing the figures")
            first = collectives.rank() == 0
            failure = atomic_folders.attempt(lambda: write_figures(place, results, run, result)) if first else None
            atomic_folders.agree("the figures", failure)
    except OSError as error:
        raise not_written("the trained models", error, folder, fix) from None
    if linked:
        save_index(run, folder / export.INDEX, model)
    run.index.clear()
    say_gate(run)
    if collectives.rank() == 0:
        show_outcome(results, write_report(folder), run.console)


def say_gate(run: Run) -> None:
    """Says how many of the queries read in training taught nothing because of `--gate_gain` and `--gate_margin`."""
    objective, state = run.config.objective, run.state
    if not any(name in run.parts.objective.spec.settings for name in ("gate_gain", "gate_margin")):
        return
    limits = {"gate_gain": objective.gate_gain, "gate_margin": objective.gate_margin}
    given = " ".join(f"--{name} {value:g}" for name, value in limits.items() if value is not None)
    if given:
        read = state.step * run.parts.loader.global_batch
        run.console.say(f"gate       {state.gated:,} of {read:,} queries taught nothing ({given})")


def make_cards(run: Run, result: Evaluation) -> dict[str, str]:
    """Model -> the text of its README.md."""
    config, state = run.config, run.state
    steps = state.best_step if config.evaluation.load_best_model_at_end and state.best_step is not None else state.step
    return {
        name: card(name, config, steps, result.metrics, card_lines(name, run.parts, config))
        for name in run.parts.engines.modules
    }


def export_models(place: Path, engines: Engines, cards: dict[str, str]) -> None:
    """Writes `place/retriever` for sentence-transformers and `place/generator` for transformers, each with its card.

    Rank 0 writes; the other ranks take part in gathering parameters that ZeRO-3 shards. Raises OSError on every rank if
    it fails.
    """
    stop_signals.phase("exporting the models")
    fault_injection.point("export")
    first, failure = collectives.rank() == 0, None

    def write(folder: Path, saved: Any, state: Any, card: str) -> None:
        saved.save(folder, state)
        (folder / "README.md").write_text(card, encoding="utf-8")
        fault_injection.point("export_model")

    for name, module in engines.modules.items():
        state = engines.full_state(name, keep=first)
        if first and failure is None:
            failure = atomic_folders.attempt(partial(write, place / name, module, state, cards[name]))
    atomic_folders.agree("a model", failure)


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
    (place / json_files.RESULTS).write_text(json.dumps(results, indent=1), encoding="utf-8")
    (place / json_files.CONFIG).write_text(config_and_results.configuration_text(config), encoding="utf-8")


def card_lines(name: str, parts: Parts, config: RunConfig) -> dict[str, Any]:
    """Lines of a model's card that say how to use it in the way it was trained."""
    if name == "retriever":
        s = parts.retriever.settings
        return {
            "pooling": s.pooling,
            "normalize": s.normalize,
            "query prefix": s.query_prefix,
            "passage prefix": s.passage_prefix,
        } | ({"weight of BM25 in its scores": weight_of_words(parts)} if parts.retriever.reads_words else {})
    return {"prompt": config.model.prompt_template, "chat template": config.model.chat_template}


def weight_of_words(parts: Parts) -> float:
    """BM25's weight in the retriever's scores, in three digits. All ranks together."""
    return float(f"{float(parts.retriever.lexical_weight.detach()):.3g}")


def save_index(run: Run, folder: Path, model_hash: str) -> None:
    """Saves the last index, with a manifest of what made it. All ranks call it together. model_hash: that of the saved
    retriever."""
    index, parts = run.index, run.parts
    assert index.built is not None and index.full
    describe_and_publish(
        folder, index.built, index.corpus, parts.retriever, parts.data, run.config.evaluation, model_hash
    )


def show_outcome(results: dict[str, Any], report: Path, console: Console) -> None:
    """Prints the metrics before and after training, the sample questions, and the path of the report."""
    before, after, known = results["before"], results["after"], results["evaluation"]
    if after:
        rows = figure_rows(before, after, known)
        console.table("held-out queries", ["metric", "before", "after", "95 % interval", "n"], rows)
        if known["after"].get("signature"):
            console.say(f"signature  {known['after']['signature']['line']}")
        if warning := unlike(known):
            console.say(f"warning: {warning}", style="yellow")
    if table := lexical_table(results):
        console.table("retrieval, beside a search by words (BM25)", ["ranking", *COMPARED], table)
    for sample in results["samples"]:
        console.say("")
        console.say(f"question   {sample['query']}")
        console.say(
            f"retrieved  {sample['passage'][:300]}{'' if sample['retrieved_gold'] else '   (not the labelled one)'}"
        )
        console.say(f"answer     {sample['answer']}   (wanted: {' | '.join(sample['gold'])})")
    console.say("")
    console.say(f"report     {report}   ({results['steps']} steps, {results['seconds']:.0f} s in all)")


def figure_rows(before: dict[str, float], after: dict[str, float], known: dict[str, Any]) -> list[list[str]]:
    """metric, before, after, the interval of `after`, n; the figures that need no labels last. known: `evaluation` of
    results.json."""
    before = before | known["before"].get("without_labels", {})
    after = after | known["after"].get("without_labels", {})
    ends, counts = known["after"].get("intervals", {}), known["after"].get("n", {})
    return [
        [
            name,
            f"{before[name]:.3f}" if name in before else "-",
            f"{value:.3f}",
            show_interval(ends.get(name)),
            str(counts.get(name, "-")),
        ]
        for name, value in after.items()
    ]
