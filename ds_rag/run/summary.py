"""What a run prints at its beginning, and what it writes at its end: models, index, figures, report."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ds_rag.config import RunConfig
from ds_rag.data.splits import ways_to_hold_out
from ds_rag.engines.engine_pair import Engines
from ds_rag.evaluation.evaluator import Evaluation
from ds_rag.evaluation.power import needed_line
from ds_rag.index.store import hash_model
from ds_rag.models.adapters import wanted_by
from ds_rag.models.sharded import count_of
from ds_rag.run import config_and_results, export
from ds_rag.run.active_run import Run
from ds_rag.run.assemble import Parts
from ds_rag.run.model_cards import card
from ds_rag.run.outcome import lexical_lines, outcome, write_figures
from ds_rag.run.publish_index import describe_and_publish
from ds_rag.run.report.page import write_report
from ds_rag.run.shown_outcome import say_gate, show_outcome
from ds_rag.run.verdict import FEW_STEPS, MORE_STEPS
from ds_rag.runtime import atomic_folders, collectives, fault_injection, json_files, stop_signals
from ds_rag.runtime.atomic_files import write_complete
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import not_written

ADAPTERS = "LoRA: the base's weights are needed to open them; ds-rag merge makes one folder of both"


def say_beginning(parts: Parts, config: RunConfig, folder: Path, console: Console) -> None:
    """Prints what the run is about to do, in four lines, and writes the resolved configuration to the run's folder."""
    optim, data = config.optim, parts.data
    models = ", ".join(model_text(n, m, n in parts.engines.learning) for n, m in parts.engines.modules.items())
    batch = f"{optim.per_device_train_batch_size} x {optim.gradient_accumulation_steps} x {collectives.world()}"
    built_in = "the built-in world, not rows of yours (--train_data FILE): " if config.is_builtin else ""
    console.say(
        f"data       {built_in}{len(data.train)} rows, {data.corpus_size} passages, {len(data.evaluation)} held-out "
        "queries"
    )
    if data.labelled and not config.is_builtin:
        line, few = needed_line([data.cluster_of(data.evaluation[n]) for n in data.labelled])
        console.say(f"{'note: ' * few}{line}", style="yellow" if few else None)
    if not data.evaluation:
        ways = ways_to_hold_out(len(data.train))
        console.say(f"note: no rows are held out, so whether training helps will not be known: {ways}", style="yellow")
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
    if parts.total_steps < FEW_STEPS and not config.is_builtin:
        console.say(f"note: only {parts.total_steps} steps: {MORE_STEPS}", style="yellow")
    if parts.retriever.reads_words:
        console.say(f"words      BM25 is in the retriever's scores, with weight {weight_of_words(parts)}")
    console.say(f"run        {folder} (libraries' messages: run.log)")
    if not config.is_builtin:
        for name in ("retriever", "generator"):
            if getattr(config.model, name).startswith("config:") and name in parts.engines.modules:
                console.say(f"note: the {name} starts untrained, from {getattr(config.model, name)}", style="yellow")
    if collectives.rank() == 0 and not export.exported(folder):  # else config.json belongs to the exported models
        write_complete(folder / json_files.CONFIG, config_and_results.configuration_text(config))


def model_text(name: str, module: nn.Module, learns: bool) -> str:
    """A model's size, and how much of it is trained: of one with adapters a small part."""
    size, trained = count_of(module), count_of(module, trained=True) if learns else 0
    part = "frozen" if not trained else "trained" if trained > size / 2 else f"{trained / 1e6:.2f}M of them trained"
    return f"{name} {size / 1e6:.1f}M ({part})"


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


def card_lines(name: str, parts: Parts, config: RunConfig) -> dict[str, Any]:
    """Lines of a model's card that say how to use it in the way it was trained."""
    adapters = {"adapters": ADAPTERS} if wanted_by(config.model.lora, name) else {}
    if name == "retriever":
        s = parts.retriever.settings
        return (
            {
                "pooling": s.pooling,
                "normalize": s.normalize,
                "query prefix": s.query_prefix,
                "passage prefix": s.passage_prefix,
            }
            | adapters
            | ({"weight of BM25 in its scores": weight_of_words(parts)} if parts.retriever.reads_words else {})
        )
    return {"prompt": config.model.prompt_template, "chat template": config.model.chat_template} | adapters


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
