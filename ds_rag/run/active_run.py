"""The objects of a run under way, and what happens whenever there is a new index: figures, candidates, best step."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ds_rag.config import RunConfig
from ds_rag.index.encode import encode
from ds_rag.models.retriever import Retriever
from ds_rag.run.assemble import Parts
from ds_rag.run.checkpoint import TrainState
from ds_rag.run.checkpoint_saver import CheckpointSaver
from ds_rag.run.early_stopping import note_metric
from ds_rag.run.evaluation_files import Measured, write_before
from ds_rag.run.index_refresh import IndexStage, Landed
from ds_rag.run.metrics_file import Metrics
from ds_rag.run.step_metrics import ProgressText
from ds_rag.run.teacher import score_ahead
from ds_rag.run.watchers import Watchers
from ds_rag.runtime import stop_signals
from ds_rag.runtime.console import Console, duration
from ds_rag.runtime.stop_agreement import Halt


@dataclass
class Run:
    """What the training loop, and the code before and after it, work with."""

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
    """Before the first step: the first index, its figures, and the rows' candidates. Under `--load_best_model_at_end`
    also a checkpoint, for the untrained weights may turn out to be the best."""
    index, state, metrics = run.index, run.state, run.metrics
    stop_signals.phase("the first index and evaluation")
    if index.wanted:
        first = index.refresh(0, progress=True)
        metrics.write("refresh", 0, first.figures)
        refresh_candidates(run, 0, first.retriever)
    else:
        refresh_candidates(run, 0, run.parts.retriever)  # those of BM25 need no index
    if run.parts.data.evaluation:
        state.before = first.result.metrics
        state.lexical_before = index.evaluator.lexical_lines(first.result)
        metrics.write("eval", 0, state.before | first.result.without_labels)
        measured = Measured(first.result, index.evaluator, run.config)
        state.before_trust = write_before(measured, run.parts.engines.modules, run.folder)
    index.best = note_metric(state, state.before or {}, run.config.evaluation, 0)
    state.refreshed = 0
    if run.config.evaluation.load_best_model_at_end:
        run.saver.save(state)


def look_up_passages(run: Run) -> None:
    """With `--train_side query`: the vectors of all passages, for the steps to look up. Those of the corpus are the
    index's; passages that only rows have are encoded here. All ranks together."""
    parts, vectors = run.parts, run.parts.joint.options.vectors
    if vectors is None:
        return
    stop_signals.phase("the vectors of the passages")
    if run.index.built is None:
        run.index.encode(run.state.step, progress=True)
    size, batch = parts.data.corpus_size, run.config.evaluation.per_device_eval_batch_size
    others = parts.loader.tokens.passages.after(size)
    found = run.index.vectors()
    if len(others):
        vectors_nD = encode(parts.retriever, others, "passage", batch, run.console)
        found.append((np.arange(size, size + len(others)), vectors_nD))
    vectors.fill(found)


def take_up(run: Run, landed: Landed, text: ProgressText, new_candidates: bool = True) -> None:
    """Puts a new index to use in the loop: writes its figures, gives rows their candidates, and marks the stage as
    done, so that a resumed run does not repeat it. new_candidates: False where no further row is read."""
    record_index(run, landed, new_candidates and run.state.step < run.parts.total_steps)
    text.metrics = landed.result.metrics
    run.state.refreshed = landed.step


def record_index(run: Run, landed: Landed, new_candidates: bool = False) -> None:
    """Writes the figures of an index and of its evaluation, and notes whether its weights are the best so far."""
    run.metrics.write("refresh", landed.step, landed.figures)
    if new_candidates:
        run.index.stalled += refresh_candidates(run, landed.step, landed.retriever)  # training waits
        score_known_pairs(run)
    if run.parts.data.evaluation:
        run.metrics.write("eval", landed.step, landed.metrics | landed.result.without_labels)
    run.watchers.after_evaluation(landed.step, landed.result.retrieved)
    run.index.best = note_metric(run.state, landed.result.metrics, run.config.evaluation, landed.step)


def score_known_pairs(run: Run, progress: bool = False) -> None:
    """With `--teacher_cache`: the generator reads the pairs of the next steps that it has not read before."""
    if not run.config.scoring.teacher_cache:
        return
    found = score_ahead(run.parts, run.config, run.state.step, run.console if progress else None)
    if found:
        run.metrics.write("scores", run.state.step, found)
        if found["scored"]:
            seconds, pairs = found["seconds"], f"{found['scored']:,.0f} of {found['pairs']:,.0f} pairs"
            run.console.say(f"teacher    {pairs} scored in {duration(seconds)}, the others were stored")


def refresh_candidates(run: Run, step: int, retriever: Retriever) -> float:
    """Gives all rows new candidates from the newest index. Returns the seconds that this took, 0 where rows take their
    candidates from the batch, or have all of them from BM25 already.

    step: that of the weights which made the index; retriever: has these weights, and encodes the queries."""
    if not run.parts.candidates or run.parts.candidates.are_final:
        return 0.0
    began = time.monotonic()
    found = run.parts.candidates.refresh(step, run.index.search, retriever)
    seconds = time.monotonic() - began
    run.metrics.write("candidates", step, found | {"seconds": seconds})
    return seconds
