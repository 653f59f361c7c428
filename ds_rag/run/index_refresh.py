"""The index stage of training. When a refresh is due, the corpus is encoded again, a new index replaces the old one,
and the held-out queries are scored on it.

`sync`: training waits for the refresh. `async`: a thread encodes this rank's shard with a copy of the retriever while
training continues. At the end of each step during a refresh the ranks agree, by one small reduction, whether all of
them are done; if so, all put the new index to use at the same step. The thread takes part in no collective and draws no
random number, so the losses are bitwise those of `sync` (except where rows take candidates from the index). Training
waits for a refresh that is older than `--refresh_staleness` steps, or still under way when the next one is due.

With `--train_side query` the corpus is encoded once: its vectors stay on the disk, where steps look them up, a refresh
encodes nothing, and an index is that of every step.
"""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ds_rag.config import EvaluationConfig
from ds_rag.engines.retriever_snapshot import snapshot
from ds_rag.evaluation.evaluator import Evaluation, Evaluator
from ds_rag.index.building import (
    Built,
    Corpus,
    EncodedShard,
    Encoder,
    all_shards,
    build_from_shards,
    build_together,
    encode_shard,
    update_shard,
)
from ds_rag.index.passage_vectors import Part
from ds_rag.index.shards import remove_shards
from ds_rag.index.vector_folder import open_vector_store, say_account
from ds_rag.models.fingerprint import fingerprint, passages_fingerprint
from ds_rag.models.retriever import Retriever
from ds_rag.run.assemble import Parts
from ds_rag.run.refresh_figures import shard_figures
from ds_rag.runtime import collectives, stop_signals
from ds_rag.runtime.background import Background, Cancelled
from ds_rag.runtime.console import Console
from ds_rag.runtime.long_waits import meet


@dataclass
class Landed:
    """A new index that is in use.

    step: that of the weights which made it; at: the step after which it was put to use. full: every passage was encoded
    by these weights, none kept or mapped from an older index. retriever: has these weights, to embed queries for this
    index; under `sync` it is the retriever in training, so this holds only until the next step. figures: for
    metrics.jsonl.
    """

    result: Evaluation
    step: int
    at: int
    full: bool
    retriever: Retriever
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the evaluation, and `landed` if the index was put to use after a later step than its own."""
        return self.result.metrics | ({"landed": self.at} if self.at != self.step else {})


@dataclass
class Pending:
    """A refresh under way. began: time.monotonic() at its start; stalled: seconds for which training has waited for it.
    build_next: its job only encodes; when all ranks have done so, another job merges the shards."""

    step: int
    retriever: Retriever
    model: str
    full: bool
    began: float
    stalled: float
    job: Background
    build_next: bool


class IndexStage:
    """Refreshes and searches the index of a run. `built.index` is the newest index, `step` that of the weights which
    made it. All ranks call every method together."""

    def __init__(
        self,
        parts: Parts,
        settings: EvaluationConfig,
        evaluator: Evaluator,
        folder: Path,
        console: Console,
        needed: bool = False,
    ):
        """folder: the run's. needed: refresh the index on schedule even if there are no rows to evaluate."""
        self.parts, self.settings, self.evaluator, self.console = parts, settings, evaluator, console
        self.wanted = needed or bool(parts.data.evaluation)
        self.folder = folder / "refresh"
        self.corpus = Corpus(parts.eval_tokens.passages, parts.retriever, settings.per_device_eval_batch_size)
        self.built: Built | None = None
        self.step, self.model, self.full = -1, "", False
        self.constant = parts.joint.options.vectors is not None  # are the corpus's vectors the same at every step?
        self.best: int | None = (
            None  # under --load_best_model_at_end this step's vectors are kept: the run may need them
        )
        self.pending: Pending | None = None
        self.cancel = threading.Event()
        self.stalled, self.loop_seconds = 0.0, 0.0
        self.stream = torch.cuda.Stream() if parts.device.type == "cuda" else None

    def search(self, queries_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores_Bk float32, numbers_Bk int64) from the newest index, for the same queries on all ranks; the numbers
        are those of the passage table."""
        assert self.built is not None, "no refresh yet"
        return self.built.index.search(queries_BD, k)

    def refresh(self, step: int, progress: bool = False, full: bool = True) -> Landed:
        """Refreshes the index now, with the current weights, while training waits. full: encode every passage, whatever
        `--refresh_fraction` says."""
        began = time.monotonic()
        self.encode(step, progress, full)
        return self._land(step, self.parts.retriever, began, time.monotonic() - began)

    def encode(self, step: int, progress: bool = False, full: bool = True) -> None:
        """`refresh` without the scoring of held-out queries. What must be full is of weights that stay, those of the
        beginning or of the end, so its vectors are taken from `--vector_cache` and added there."""
        assert self.pending is None
        retriever = self.parts.retriever
        model, root = self._made_by(retriever), self.settings.vector_cache if full else None
        full = full or not self._partial()
        if self._is_current(model):
            self._note_same_weights(step)
        else:
            console = self.console if progress else Console(speaks=False)
            store = open_vector_store(root, retriever, self.console.say)
            shard = self._encode(Encoder(retriever, model, step, store=store), full, console)
            say_account(store, self.console)
            self._swap(build_together(self.corpus, shard, self._folder(step), self.settings), step, model, full)

    def vectors(self) -> list[Part]:
        """(passage numbers, their vectors memory-mapped) of every rank: together those of the newest index. All ranks
        must see the run's folder; UserError where they do not."""
        return all_shards(self.corpus, self._folder(self.step), "a run's folder that they share, or --train_side both")

    def after_step(self, step: int) -> Landed | None:
        """To be called after every optimizer step: begins a refresh that is due; returns an index that landed."""
        due = self.wanted and self.parts.schedule.due(step) and step < self.parts.total_steps
        landed = None
        if self.pending is not None:
            landed = self._poll(step, wait=due or step - self.pending.step >= self.settings.refresh_staleness)
        if not due:
            return landed
        began = time.monotonic()
        model = self._made_by(self.parts.retriever)
        if self.settings.refresh_mode == "async" and (landed or not self._is_current(model)):
            self._begin(step, model, began)
            self.stalled += time.monotonic() - began
            return landed
        landed = self.refresh(step, full=False)
        self.stalled += landed.figures["stall_seconds"]
        return landed

    def drain(self, step: int) -> Landed | None:
        """Waits for a refresh that is under way when training ends: its figures belong to the run."""
        return self._poll(step, wait=True) if self.pending else None

    def _begin(self, step: int, model: str, began: float) -> None:
        """Copies the weights and starts the thread."""
        retriever, full = snapshot(self.parts.engines), not self._partial()
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())  # until the weights are copied
        alone = self.corpus.world == 1 or self.settings.index_shards == "keep"  # needs no other rank's shard

        def work() -> EncodedShard | Built:
            with torch.cuda.stream(self.stream) if self.stream is not None else nullcontext():
                shard = self._encode(Encoder(retriever, model, step, alone=True), full, Console(speaks=False))
            return build_from_shards(self.corpus, shard, self._folder(step), self.settings) if alone else shard

        job = Background(work)
        stalled = time.monotonic() - began
        self.pending = Pending(step, retriever, model, full, began, stalled, job, build_next=not alone)

    def _poll(self, step: int, wait: bool) -> Landed | None:
        """Checks once whether all ranks are done, or waits until they are; returns the index if so."""
        pending = self.pending
        assert pending is not None
        began = time.monotonic()
        done = self._done(pending, wait)
        if done:
            self.pending = None
            self._swap(pending.job.value, pending.step, pending.model, pending.full)
        seconds = time.monotonic() - began
        self.stalled += seconds
        pending.stalled += seconds
        return self._land(step, pending.retriever, pending.began, pending.stalled) if done else None

    def _done(self, pending: Pending, wait: bool) -> bool:
        """Whether all ranks are done. If shards are merged, the merging begins here, once all of them are encoded."""
        while True:
            if meet(pending.job, "the index stage", collectives.beat() if wait else 0):
                if not wait:
                    return False
                stop_signals.safe_place()
                continue
            if not pending.build_next:
                return True
            shard, where = pending.job.value, self._folder(pending.step)
            pending.job, pending.build_next = (
                Background(partial(build_from_shards, self.corpus, shard, where, self.settings)),
                False,
            )

    def _encode(self, encoder: Encoder, full: bool, console: Console) -> EncodedShard:
        """This rank's shard. full: every passage is encoded, else only those that have drifted most."""
        where = self._folder(encoder.step)

        def watch(count: int) -> None:
            if self.cancel.is_set():
                raise Cancelled
            meter.advance(count)

        with console.progress(len(self.corpus.numbers_n), "encoding passages", unit="passage") as meter:
            encoder = replace(encoder, watch=watch)
            if full:
                return encode_shard(encoder, self.corpus, where)
            assert self.built is not None
            return update_shard(
                encoder, self.corpus, where, self.built.shard, self.settings.refresh_fraction, self.parts.loader.seed
            )

    def _folder(self, step: int) -> Path:
        return self.folder / f"step-{0 if self.constant else step}"

    def _made_by(self, retriever: Retriever) -> str:
        """A hash of the weights that make an index."""
        if not self.constant:
            return fingerprint(retriever)
        return self.model or passages_fingerprint(retriever)

    def _partial(self) -> bool:
        fraction = self.settings.refresh_fraction
        return self.built is not None and (fraction == "auto" or float(fraction) < 1)

    def _is_current(self, model: str) -> bool:
        """Whether every vector of the index was made by these weights, on all ranks: so it is if they are frozen."""
        other = not (self.built is not None and self.full and self.model == model)
        return not collectives.all_sum({"other": float(other)}, self.parts.device)["other"]

    def _note_same_weights(self, step: int) -> None:
        assert self.built is not None
        self.step = step
        self.built.shard.steps_n[:] = step

    def _swap(self, built: Built, step: int, model: str, full: bool) -> None:
        """Puts the new index to use, and deletes the files that the old one was made from."""
        self.built, self.step, self.model, self.full = built, step, model, full
        if collectives.rank() == 0:
            kept = {step, self.best} if self.settings.load_best_model_at_end else {step}
            for old in self.folder.glob("step-*"):
                if old not in [self._folder(s) for s in kept if s is not None]:
                    remove_shards(old)
        collectives.barrier()  # otherwise files of another rank's next refresh might be deleted too

    def _land(self, at: int, retriever: Retriever, began: float, stalled: float) -> Landed:
        """Scores the held-out queries on the new index. The weights that made the index embed them; the answers come
        from the generator with its current weights."""
        assert self.built is not None
        figures = {"landed": at, "seconds": time.monotonic() - began, "stall_seconds": stalled}
        figures |= shard_figures(self.built.shard, at, len(self.corpus.tokens), self.parts.device)
        result = self.evaluator.measure(self.built.index, retriever)
        if result.retrieved is not None:
            figures["distinct_passages"] = result.retrieved.fraction
        return Landed(result, self.step, at, self.full, retriever, figures)

    def __enter__(self) -> IndexStage:
        """The training loop begins."""
        self.loop_began = time.monotonic()
        return self

    def __exit__(self, *exc: object) -> None:
        """The training loop ends, by an error too: a refresh that is still under way is cancelled."""
        self.loop_seconds = time.monotonic() - self.loop_began
        if self.pending is not None:
            self.cancel.set()
            self.pending.job.join()
            self.pending = None

    @property
    def stall_fraction(self) -> float:
        """The fraction of the loop's time in which training waited for the index. The search for candidates counts, the
        scoring of held-out queries does not."""
        return self.stalled / self.loop_seconds if self.loop_seconds else 0.0

    def clear(self) -> None:
        """Deletes the files that the index was made from; processes that map them can still read them."""
        collectives.barrier()
        if collectives.rank() == 0:
            for step in self.folder.glob("step-*"):
                remove_shards(step)
            with suppress(OSError):  # not empty
                self.folder.rmdir()
