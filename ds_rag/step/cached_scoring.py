"""The generator's side of a step where it is not trained: its scores are constants, each cell is read once.

Shape legend: C cells, A tokens of the longest target.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ds_rag.data.batch import Batch, CellList
from ds_rag.data.prompt import Prompt
from ds_rag.models.generator import Generator
from ds_rag.models.score_store import ScoreStore, cell_keys
from ds_rag.runtime import collectives, stop_signals
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.step import pair_scores
from ds_rag.step.generator_side import Scoring, own_cells
from ds_rag.step.pair_scores import (
    Pair,
    PairScores,
    PairTexts,
    cells_of,
    chunks_of,
    of_all_ranks,
    own_pairs,
    read_cells,
    score_pairs,
)


@dataclass
class CachedCells:
    """The handle of one micro-batch, as `ScoredCells` is without a store.

    outputs: (C, A) float32 log-probabilities in nats, 0 after the end of a cell's target. mine: the cells that belong
    to this rank. read: how many of them the generator has read now. tokens: how many it read for that.
    """

    outputs: torch.Tensor
    mine: list[int]
    read: int
    tokens: int

    @property
    def on_this_rank(self) -> torch.Tensor:
        return self.outputs[self.mine]

    def backward(self, grad_CA: torch.Tensor, place: Sequence[int] = (0,)) -> dict[str, float]:
        """No gradient goes into a frozen generator. Returns `cached_cells`: the fraction that was not read."""
        return {"cached_cells": 1 - self.read / max(1, len(self.mine))}


class CachedScoring:
    """`Scoring` of a frozen generator that reads only cells which `store` lacks, and adds them to it.

    The first cells that come from the disk are read again: UserError where they do not agree with the generator.
    Raises UserError for a generator that is trained.
    """

    def __init__(self, scoring: Scoring, store: ScoreStore):
        if scoring.is_trained:
            raise UserError("stored scores of a generator that is trained: they change at every step", fix="freeze it")
        self.scoring, self.store = scoring, store

    @property
    def is_trained(self) -> bool:
        return False

    def forward(self, cells: CellList, batch: Batch, last: bool) -> CachedCells:
        """Log-probabilities of all cells; no forward at all where every rank knows all of its own."""
        scoring, store = self.scoring, self.store
        mine, keys = own_cells(cells, batch), cell_keys(cells)
        missing = [c for c in mine if keys[c] not in store]
        known = [c for c in mine if keys[c] in store]
        again = [known[n] for n in store.sample([keys[c] for c in known])]
        most = collectives.all_max({"read": len(missing) + len(again), "again": len(again)}, scoring.device)
        tokens, wrong = 0, list[str]()
        if most["read"]:
            chunks = scoring.equal_on_ranks(scoring.split(cells, missing + again))
            tokens = sum(scoring.size(cells, chunk)[0] for chunk in chunks if chunk)
            wrong = keep(store, keys, read_cells(scoring.generator, cells, chunks), set(again))
        if most["again"]:
            agree(store, wrong)
        lengths = cells.target_lengths
        logp_CA = np.zeros((len(cells), cells.target_length), np.float32)
        for c in mine:
            logp_CA[c, : lengths[c]] = store[keys[c]]
        outputs = torch.from_numpy(logp_CA).to(scoring.device)
        return CachedCells(collectives.add_over_ranks(outputs) if batch.shares else outputs, mine, len(missing), tokens)


@dataclass(frozen=True)
class FrozenReader:
    """A frozen generator, its prompt, and the token ids of the texts that pairs consist of."""

    generator: Generator
    prompt: Prompt
    texts: PairTexts


def score_missing(
    reader: FrozenReader, pairs: Sequence[Pair], store: ScoreStore, console: Console | None = None
) -> int:
    """Reads the pairs that `store` lacks, on all ranks together, each passage once. Afterwards every rank knows all of
    them, if the ranks see one folder. Returns the number of pairs that were read, over all ranks.

    What has been read when this is stopped stays. console: progress. Raises UserError as `CachedScoring` does, and
    Stopped.
    """
    store.reload()
    mine = own_pairs(pairs, collectives.rank(), collectives.world()).tolist()
    keys = keys_of(reader, [pairs[n] for n in mine])
    again = {mine[n] for n in store.sample(keys)}
    missing = [n for n, key in zip(mine, keys, strict=True) if key not in store or n in again]
    counts = collectives.all_sum({"read": len(missing) - len(again), "again": len(again)}, collectives.device())
    wrong: list[str] = []
    try:
        with (console or Console(speaks=False)).progress(int(counts["read"]), "scoring", unit="pair") as meter:
            for start in range(0, pair_scores.most_on_ranks(len(missing)), pair_scores.BLOCK):
                block = missing[start : start + pair_scores.BLOCK]
                cells = cells_of(reader.prompt, reader.texts, [pairs[n] for n in block])
                of_block, places = cell_keys(cells), {c for c, n in enumerate(block) if n in again}
                for chunk in chunks_of(reader.generator, cells):
                    stop_signals.safe_place()
                    wrong += keep(store, of_block, read_cells(reader.generator, cells, [chunk]), places)
                    meter.advance(len(chunk) * collectives.world())
    finally:
        store.flush()
    if counts["again"]:
        agree(store, wrong)
    collectives.barrier()  # the others' shards are complete
    if collectives.world() > 1:
        store.reload()
    return int(counts["read"])


def scores_of(
    reader: FrozenReader, pairs: Sequence[Pair], store: ScoreStore | None, console: Console | None = None
) -> PairScores:
    """log p(y|x,z) of every pair, on every rank: what `store` has is not read, what it lacks is read and added; without
    a store all pairs are read. All ranks together, each with the same pairs. console: progress, and how many were read.
    Raises as `score_missing`.
    """
    if store is None:
        return score_pairs(reader.generator, reader.prompt, reader.texts, pairs, console)
    read = score_missing(reader, pairs, store, console)
    if console is not None:
        console.say(f"teacher    {read:,} of {len(pairs):,} pairs scored, the others were in {store.folder}")
    return replace(stored_scores(reader, pairs, store), read=read)


def stored_scores(reader: FrozenReader, pairs: Sequence[Pair], store: ScoreStore) -> PairScores:
    """The scores of pairs that are in the store, after `score_missing` for the same ones. All ranks together."""
    mine = own_pairs(pairs, collectives.rank(), collectives.world())
    stored = [store[key].astype(np.float64) for key in keys_of(reader, [pairs[n] for n in mine.tolist()])]
    found = np.array([(logp_A.sum(), len(logp_A)) for logp_A in stored]).reshape(-1, 2)
    return of_all_ranks(mine, found, len(pairs))


def keys_of(reader: FrozenReader, pairs: Sequence[Pair]) -> list[bytes]:
    """The keys of these pairs; the sequences of one block exist at a time."""
    blocks = (pairs[start : start + pair_scores.BLOCK] for start in range(0, len(pairs), pair_scores.BLOCK))
    return [key for block in blocks for key in cell_keys(cells_of(reader.prompt, reader.texts, block))]


def keep(
    store: ScoreStore, keys: Sequence[bytes], found: Iterable[tuple[int, np.ndarray]], again: Collection[int]
) -> list[str]:
    """Adds what was read to the store. Returns what is wrong with the cells of `again`, which were in it already."""
    wrong = []
    for c, logp_A in found:
        if c not in again:
            store.add(keys[c], logp_A)
        elif problem := store.disagreement(keys[c], logp_A):
            wrong.append(problem)
    return wrong


def agree(store: ScoreStore, wrong: Sequence[str]) -> None:
    """Raises UserError on all ranks where one found something wrong; else the store counts as verified."""
    everywhere = [problem for of_rank in collectives.gather_objects(list(wrong)) for problem in of_rank]
    if everywhere:
        raise store.refuse(everywhere)
    store.verified = True
