"""The index stage of training: when it is due the corpus is encoded again, an index made and swapped in, and held-out
queries are scored on it.

`sync`: training waits. `async`: a thread encodes this rank's share with a copy of the retriever, and training goes on.
At the end of each step, only while a refresh is under way, the ranks agree by one small reduction whether all are
done; then the index is swapped in on all of them at the same step. The thread takes part in no collective and draws
no random number, so losses are those of `sync`, bit for bit (but where rows take candidates from the index). A refresh
that is older than `--refresh_staleness` steps, or still under way when the next is due, is waited for.
"""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ds_rag.config import EvaluationConfig
from ds_rag.engines.snapshot import snapshot
from ds_rag.evaluation.evaluator import Evaluation, Evaluator
from ds_rag.index.building import (
    Built,
    Corpus,
    EncodedShard,
    Encoder,
    build,
    build_together,
    encode_shard,
    update_shard,
)
from ds_rag.index.shards import remove_shards
from ds_rag.models.fingerprint import fingerprint
from ds_rag.models.retriever import Retriever
from ds_rag.run.assemble import Parts
from ds_rag.runtime import collectives, stop_signals
from ds_rag.runtime.background import Background, Cancelled
from ds_rag.runtime.console import Console
from ds_rag.runtime.long_waits import meet


@dataclass
class Landed:
    """An index that was swapped in. step: of its weights; at: the step after which it was. whole: every vector by those
    weights. retriever: those weights, for queries to this index; under `sync` the one that is trained, so until the
    next step. figures: for metrics.jsonl."""

    result: Evaluation
    step: int
    at: int
    whole: bool
    retriever: Retriever
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The evaluation's, and where it came late, when."""
        return self.result.metrics | ({"landed": self.at} if self.at != self.step else {})


@dataclass
class Pending:
    """A refresh under way. build_next: its job is still the encoding, and merging waits for all ranks'."""

    step: int
    retriever: Retriever
    model: str
    whole: bool
    began: float
    stalled: float
    job: Background
    build_next: bool


class IndexStage:
    """`built.index` is the freshest index, `step` that of the weights it belongs to. All ranks call every method
    together."""

    def __init__(
        self,
        parts: Parts,
        settings: EvaluationConfig,
        evaluator: Evaluator,
        folder: Path,
        console: Console,
        needed: bool = False,
    ):
        """folder: the run's. needed: the index is refreshed on schedule also where there is nothing to evaluate."""
        self.parts, self.settings, self.evaluator, self.console = parts, settings, evaluator, console
        self.wanted = needed or bool(parts.data.evaluation)
        self.folder = folder / "refresh"
        self.corpus = Corpus(parts.eval_tokens.passages, parts.retriever, settings.per_device_eval_batch_size)
        self.built: Built | None = None
        self.step, self.model, self.whole = -1, "", False
        self.best: int | None = None  # under --load_best_model_at_end this step's vectors stay: they may be the run's
        self.pending: Pending | None = None
        self.cancel = threading.Event()
        self.stalled, self.loop_seconds = 0.0, 0.0
        self.stream = torch.cuda.Stream() if parts.device.type == "cuda" else None

    def search(self, queries_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores_Bk float32, numbers_Bk int64) of the freshest index for the same queries on all ranks; numbers are of
        the passage table."""
        assert self.built is not None, "no refresh yet"
        return self.built.index.search(queries_BD, k)

    def refresh(self, step: int, progress: bool = False, whole: bool = True) -> Landed:
        """Now, and by the weights as they are; training waits. whole: every passage, whatever `--refresh_fraction`."""
        assert self.pending is None
        began, retriever = time.monotonic(), self.parts.retriever
        model, whole = fingerprint(retriever), whole or not self._partial()
        if self._stands(model):
            self._note_same_weights(step)
        else:
            console = self.console if progress else Console(speaks=False)
            share = self._encode(retriever, model, step, whole, False, console)
            self._swap(build_together(self.corpus, share, self._folder(step), self.settings), step, model, whole)
        return self._land(step, retriever, began, time.monotonic() - began)

    def after_step(self, step: int) -> Landed | None:
        """To be called after every optimizer step: begins what is due, and returns what landed."""
        due = self.wanted and self.parts.schedule.due(step) and step < self.parts.total_steps
        landed = None
        if self.pending is not None:
            landed = self._poll(step, wait=due or step - self.pending.step >= self.settings.refresh_staleness)
        if not due:
            return landed
        began = time.monotonic()
        model = fingerprint(self.parts.retriever)
        if self.settings.refresh_mode == "async" and (landed or not self._stands(model)):
            self._begin(step, model, began)
            self.stalled += time.monotonic() - began
            return landed
        landed = self.refresh(step, whole=False)
        self.stalled += landed.figures["stall_seconds"]
        return landed

    def drain(self, step: int) -> Landed | None:
        """What is under way when training ends, waited for: its figures belong to the run."""
        return self._poll(step, wait=True) if self.pending else None

    def _begin(self, step: int, model: str, began: float) -> None:
        """Copies the weights and starts the thread."""
        retriever, whole = snapshot(self.parts.engines), not self._partial()
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())  # for the copy
        alone = self.corpus.world == 1 or self.settings.index_shards == "keep"  # no other rank's share is waited for

        def work() -> EncodedShard | Built:
            with torch.cuda.stream(self.stream) if self.stream is not None else nullcontext():
                share = self._encode(retriever, model, step, whole, True, Console(speaks=False))
            return build(self.corpus, share, self._folder(step), self.settings) if alone else share

        job = Background(work)
        stalled = time.monotonic() - began
        self.pending = Pending(step, retriever, model, whole, began, stalled, job, build_next=not alone)

    def _poll(self, step: int, wait: bool) -> Landed | None:
        """One look, or a wait until all ranks are done."""
        pending = self.pending
        assert pending is not None
        began = time.monotonic()
        done = self._done(pending, wait)
        if done:
            self.pending = None
            self._swap(pending.job.value, pending.step, pending.model, pending.whole)
        seconds = time.monotonic() - began
        self.stalled += seconds
        pending.stalled += seconds
        return self._land(step, pending.retriever, pending.began, pending.stalled) if done else None

    def _done(self, pending: Pending, wait: bool) -> bool:
        """On all ranks; where shares are merged, that is begun once all are there."""
        while True:
            if meet(pending.job, "the index stage", collectives.beat() if wait else 0):
                if not wait:
                    return False
                stop_signals.safe_place()
                continue
            if not pending.build_next:
                return True
            share, where = pending.job.value, self._folder(pending.step)
            pending.job, pending.build_next = (
                Background(partial(build, self.corpus, share, where, self.settings)),
                False,
            )

    def _encode(
        self, retriever: Retriever, model: str, step: int, whole: bool, alone: bool, console: Console
    ) -> EncodedShard:
        """This rank's share; whole, or what has moved most. alone: without the other ranks, as in a thread."""
        where = self._folder(step)

        def watch(count: int) -> None:
            if self.cancel.is_set():
                raise Cancelled
            meter.advance(count)

        with console.progress(len(self.corpus.numbers_n), "encoding passages", unit="passage") as meter:
            encoder = Encoder(retriever, model, step, watch, alone)
            if whole:
                return encode_shard(encoder, self.corpus, where)
            assert self.built is not None
            return update_shard(
                encoder, self.corpus, where, self.built.share, self.settings.refresh_fraction, self.parts.loader.seed
            )

    def _folder(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def _partial(self) -> bool:
        fraction = self.settings.refresh_fraction
        return self.built is not None and (fraction == "auto" or float(fraction) < 1)

    def _stands(self, model: str) -> bool:
        """Is the index whole and of these very weights, on all ranks (a frozen retriever's)?"""
        other = not (self.built is not None and self.whole and self.model == model)
        return not collectives.all_sum({"other": float(other)}, self.parts.device)["other"]

    def _note_same_weights(self, step: int) -> None:
        assert self.built is not None
        self.step = step
        self.built.share.steps_n[:] = step

    def _swap(self, built: Built, step: int, model: str, whole: bool) -> None:
        """The new index serves; what the old one was made from goes."""
        self.built, self.step, self.model, self.whole = built, step, model, whole
        if collectives.rank() == 0:
            kept = {step, self.best} if self.settings.load_best_model_at_end else {step}
            for old in self.folder.glob("step-*"):
                if old not in [self._folder(s) for s in kept if s is not None]:
                    remove_shards(old)
        collectives.barrier()  # or another rank's next refresh might go with it

    def _land(self, at: int, retriever: Retriever, began: float, stalled: float) -> Landed:
        """Scores the held-out queries on the new index. They are embedded by the index's own weights; the answers are
        today's generator's."""
        assert self.built is not None
        figures = {"landed": at, "seconds": time.monotonic() - began, "stall_seconds": stalled}
        figures |= shard_figures(self.built.share, at, len(self.corpus.tokens), self.parts.device)
        result = self.evaluator.measure(self.built.index, retriever)
        if result.retrieved is not None:
            figures["distinct_passages"] = result.retrieved.share
        return Landed(result, self.step, at, self.whole, retriever, figures)

    def __enter__(self) -> IndexStage:
        """The loop begins."""
        self.loop_began = time.monotonic()
        return self

    def __exit__(self, *exc: object) -> None:
        """The loop ends, or broke: a thread that still runs ends too."""
        self.loop_seconds = time.monotonic() - self.loop_began
        if self.pending is not None:
            self.cancel.set()
            self.pending.job.join()
            self.pending = None

    @property
    def stall_fraction(self) -> float:
        """Of the loop's time, what it stood still for the index, the search of candidates counted: not the scoring of
        held-out queries."""
        return self.stalled / self.loop_seconds if self.loop_seconds else 0.0

    def clear(self) -> None:
        """Removes what the index was made from; whoever still maps it keeps it."""
        collectives.barrier()
        if collectives.rank() == 0:
            for step in self.folder.glob("step-*"):
                remove_shards(step)
            with suppress(OSError):  # not empty
                self.folder.rmdir()


def shard_figures(share: EncodedShard, at: int, count: int, device: torch.device) -> dict[str, float]:
    """Over all ranks: how old vectors are, in steps at `at`, and what an update learnt."""
    every = collectives.gather_objects((np.unique(at - share.steps_n, return_counts=True), share.figures))
    ages, counts = (np.concatenate([pair[n] for pair, _ in every]) for n in (0, 1))
    order = np.argsort(ages, kind="stable")
    ages, upto = ages[order], np.cumsum(counts[order])
    found = {"index_age": float((ages * counts[order]).sum() / count), "index_age_max": float(ages[-1])}
    for share_of_all in (0.5, 0.9):
        place = np.searchsorted(upto, share_of_all * upto[-1])
        found[f"index_age_p{100 * share_of_all:.0f}"] = float(ages[place])
    if all(figures for _, figures in every):
        sums = {name: sum(figures[name] for _, figures in every) for name in every[0][1]}
        found |= {name: sums[name] / max(1.0, sums["sampled"]) for name in ("drift", "drift_moved")}
        found["drift_left"] = sums["drift_left"] / count
        found["encoded"] = sums["encoded"] / count
    return found
