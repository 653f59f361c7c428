"""A run under way: what belongs to it, and what is written down and passed on whenever there is a new index."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ds_rag.config import RunConfig
from ds_rag.models.retriever import Retriever
from ds_rag.run.assemble import Parts
from ds_rag.run.checkpoint import TrainState
from ds_rag.run.checkpoint_saver import CheckpointSaver
from ds_rag.run.early_stopping import note_metric
from ds_rag.run.evaluation_files import Measured, write_before
from ds_rag.run.index_refresh import IndexStage, Landed
from ds_rag.run.metrics_file import Metrics
from ds_rag.run.step_metrics import ProgressText
from ds_rag.run.watchers import Watchers
from ds_rag.runtime import stop_signals
from ds_rag.runtime.console import Console
from ds_rag.runtime.stop_agreement import Halt


@dataclass
class Run:
    """What the loop works with, and what comes before and after it."""

    parts: Parts
    config: RunConfig
    folder: Path
    index: IndexStage
    saver: CheckpointSaver
    halt: Halt
    watchers: Watchers
    state: TrainState
    console: Console
    metrics: Metrics


def measure_before(run: Run) -> None:
    """The figures before the first step, and its candidates; these weights may be the best, so they are kept."""
    index, state, metrics = run.index, run.state, run.metrics
    stop_signals.phase("the first index and evaluation")
    if index.wanted:
        first = index.refresh(0, progress=True)
        metrics.write("refresh", 0, first.figures)
        refresh_candidates(run, 0, first.retriever)
    if run.parts.data.evaluation:
        state.before = first.result.metrics
        metrics.write("eval", 0, state.before | first.result.without_labels)
        measured = Measured(first.result, index.evaluator, run.config)
        state.before_trust = write_before(measured, run.parts.engines.modules, run.folder)
    index.best = note_metric(state, state.before or {}, run.config.evaluation, 0)
    state.refreshed = 0
    if run.config.evaluation.load_best_model_at_end:
        run.saver.save(state)


def take_up(run: Run, landed: Landed, text: ProgressText, new_candidates: bool = True) -> None:
    """The loop goes on with a new index: its figures are written, rows get their candidates from it, and a run that is
    resumed will not do this stage again."""
    record_index(run, landed, new_candidates and run.state.step < run.parts.total_steps)
    text.metrics = landed.result.metrics
    run.state.refreshed = landed.step


def record_index(run: Run, landed: Landed, new_candidates: bool = False) -> None:
    """Writes down what an index and its evaluation gave, and whether its weights are the best so far."""
    run.metrics.write("refresh", landed.step, landed.figures)
    if new_candidates:
        run.index.stalled += refresh_candidates(run, landed.step, landed.retriever)  # no step is made meanwhile
    if run.parts.data.evaluation:
        run.metrics.write("eval", landed.step, landed.metrics | landed.result.without_labels)
    run.watchers.after_evaluation(landed.step, landed.result.retrieved)
    run.index.best = note_metric(run.state, landed.result.metrics, run.config.evaluation, landed.step)


def refresh_candidates(run: Run, step: int, retriever: Retriever) -> float:
    """New candidates for all rows, from the newest index and the weights that it was made with, those of `step`; none
    where rows take theirs from the batch. Returns the seconds it took."""
    if not run.parts.candidates:
        return 0.0
    began = time.monotonic()
    found = run.parts.candidates.refresh(step, run.index.search, retriever)
    seconds = time.monotonic() - began
    run.metrics.write("candidates", step, found | {"seconds": seconds})
    return seconds
