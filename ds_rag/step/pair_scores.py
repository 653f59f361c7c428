"""log p(y|x,z) of pairs of a question and a passage, by a generator: on all ranks, each passage read once.

What a frozen generator gives is a constant of its weights, the prompt and the three texts, so that a caller may keep
it.

Shape legend: P pairs, C cells of a block, A tokens of the longest answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from ds_rag.data.batch import CellList, Ids, list_cells
from ds_rag.data.prompt import Prompt
from ds_rag.losses import Temper, temper_of
from ds_rag.models.generator import Generator
from ds_rag.runtime import collectives, fault_injection, stop_signals
from ds_rag.runtime.console import Console
from ds_rag.step.cell_chunks import split_cells, stand_in
from ds_rag.step.generator_side import ENOUGH_TOKENS

BLOCK = 4096  # pairs whose sequences exist at once
Pair = tuple[int, int]  # numbers of a question and of a passage


class Texts(Protocol):
    """Token ids by number: a list, or a `TokenTable`."""

    def __getitem__(self, number: int, /) -> Ids: ...


@dataclass(frozen=True)
class PairTexts:
    """What pairs consist of: token ids of the generator's, as `Prompt.encode` makes them. answers: of each question,
    its end-of-sequence token included."""

    queries: Texts
    answers: Texts
    passages: Texts


@dataclass
class PairScores:
    """sums_P: float64, the log-probability of a pair's answer in nats, summed over its tokens; counts_P: int64, its
    tokens. read: how many of the pairs the generator has read for this, over all ranks."""

    sums_P: np.ndarray
    counts_P: np.ndarray
    read: int = 0

    def log_likelihoods(self, answer_logprob: str | Temper) -> np.ndarray:
        """(P,) by "sum" or "mean" over an answer's tokens, or by a `Temper`, as in training."""
        tempered_P: np.ndarray = temper_of(answer_logprob)(self.sums_P, self.counts_P.astype(np.float64))
        return tempered_P


@torch.no_grad()
def score_pairs(
    generator: Generator, prompt: Prompt, texts: PairTexts, pairs: Sequence[Pair], console: Console | None = None
) -> PairScores:
    """log p(y|x,z) of every pair, on every rank. All ranks together, each with the same pairs; each reads some of the
    passages, with all their questions. A generator that shares prefixes reads a passage once for its questions.

    A forward reads as many tokens as a chunk of training does (`ENOUGH_TOKENS`), a pair at least. console: progress.
    """
    rank, world = collectives.rank(), collectives.world()
    mine = own_pairs(pairs, rank, world)
    found = np.zeros((len(mine), 2))
    with (console or Console(speaks=False)).progress(len(pairs), "re-ranking", unit="pair") as meter:
        for start in range(0, most_on_ranks(len(mine)), BLOCK):
            stop_signals.safe_place()
            cells = cells_of(prompt, texts, [pairs[n] for n in mine[start : start + BLOCK].tolist()])
            for c, logp_A in read_cells(generator, cells, chunks_of(generator, cells)):
                found[start + c] = logp_A.astype(np.float64).sum(), len(logp_A)
                meter.advance(world)
    return replace(of_all_ranks(mine, found, len(pairs)), read=len(pairs))


def of_all_ranks(mine: np.ndarray, found: np.ndarray, count: int) -> PairScores:
    """The scores of all `count` pairs. mine: numbers of this rank's; found: float64, sum and tokens of each. All ranks
    together."""
    both = np.zeros((count, 2))
    for numbers, part in collectives.gather_objects((mine, found)):
        both[numbers] = part
    return PairScores(both[:, 0], both[:, 1].astype(np.int64))


@torch.no_grad()
def read_cells(
    generator: Generator, cells: CellList, chunks: Sequence[Sequence[int]]
) -> Iterator[tuple[int, np.ndarray]]:
    """(number of a cell, its (A,) float32 log-probabilities in nats), chunk by chunk, each chunk one forward in
    evaluation mode. An empty chunk is a forward over a dummy cell: ranks do equally many."""
    generator.eval()
    device = next(generator.lm.parameters()).device
    for chunk in chunks:
        fault_injection.point("rerank")
        read = cells.take(chunk) if chunk else stand_in()
        logp_CA = generator(generator.lay_out(read, generator.tokenizer.pad_token_id).to(device)).float().cpu().numpy()
        for c, row in zip(chunk, logp_CA, strict=False):
            yield c, row[: cells.target_lengths[c]]


def own_pairs(pairs: Sequence[Pair], rank: int, world: int) -> np.ndarray:
    """Numbers of the pairs that this rank reads, those of a passage side by side."""
    mine = np.flatnonzero(ranks_of(pairs, world) == rank)
    return mine[np.argsort([pairs[n][1] for n in mine.tolist()], kind="stable")]


def ranks_of(pairs: Sequence[Pair], world: int) -> np.ndarray:
    """(P,) the rank that reads each pair: all pairs of a passage on one, about as many pairs on each."""
    passages, place_P, counts = np.unique([p for _, p in pairs], return_inverse=True, return_counts=True)
    loads, rank_of = np.zeros(world, np.int64), np.zeros(len(passages), np.int64)
    for passage in np.argsort(-counts, kind="stable"):
        rank_of[passage] = loads.argmin()
        loads[rank_of[passage]] += counts[passage]
    return rank_of[place_P]


def most_on_ranks(count: int) -> int:
    """The largest of the ranks' counts. Ranks do equally many forwards, which are collectives under ZeRO-3."""
    return int(collectives.all_max({"n": count}, collectives.device())["n"])


def chunks_of(generator: Generator, cells: CellList) -> list[list[int]]:
    """The cells of each forward, long prefixes first; empty ones where another rank has more."""
    tokens = ENOUGH_TOKENS[next(generator.lm.parameters()).device.type]
    chunks = split_cells(cells, range(len(cells)), len(cells), tokens, generator.shares_prefixes)
    return chunks + [[] for _ in range(most_on_ranks(len(chunks)) - len(chunks))]


def cells_of(prompt: Prompt, texts: PairTexts, pairs: Sequence[Pair]) -> CellList:
    """One cell a pair, the answer its target; pairs of the same passage have one prefix."""
    halves = [prompt.split(texts.passages[p], texts.queries[q], len(texts.answers[q])) for q, p in pairs]
    suffixes = [np.concatenate([rest, texts.answers[q]]) for (q, _), (_, rest) in zip(pairs, halves, strict=True)]
    return list_cells([prefix for prefix, _ in halves], suffixes, [len(texts.answers[q]) for q, _ in pairs])
