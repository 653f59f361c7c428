"""Ranking by what a retriever with a weight of BM25 is trained with: inner product and BM25 summed.

The score of a passage is `s + temperature w b`, the retriever's score in training times its temperature, so that the
prior is the softmax of the score over the temperature as without words. Ranked are the index's first `DEPTH` passages
of a query and BM25's, each by its exact sum: in a corpus of at most DEPTH passages all of them. Of a passage that only
BM25 finds, an approximate index knows no score; it has then the least that the index has found for the query.

Shape legend: Q queries, U passages of a query that either side finds, K of them that are kept, best first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ds_rag.data.dataset import TokenTable
from ds_rag.evaluation.retrieval import Found, SearchOptions
from ds_rag.index.corpus_index import CorpusIndex
from ds_rag.index.encode import encode
from ds_rag.index.exact import MISS, best
from ds_rag.index.lexical import DEPTH, LexicalIndex, best_of
from ds_rag.models.retriever import Retriever
from ds_rag.runtime import collectives
from ds_rag.runtime.console import Console
from ds_rag.runtime.long_waits import Pause, together


@dataclass(frozen=True)
class WeightedWords:
    """What BM25 adds to a retriever's inner products, for searches on one rank."""

    index: LexicalIndex
    weight: float  # the temperature times BM25's weight

    def __call__(self, query: str) -> np.ndarray:
        """(N,) float64, of every text."""
        return self.weight * self.index.scaled(query)


def weighted_words(retriever: Retriever, texts: Sequence[str]) -> WeightedWords | None:
    """BM25 over these texts by the retriever's weight; None where it has none. On all ranks, as the temperature."""
    return WeightedWords(LexicalIndex(texts), weight_of(retriever)) if retriever.reads_words else None


def weight_of(retriever: Retriever) -> float:
    """BM25's weight beside inner products."""
    return float(retriever.temperature) * float(retriever.lexical_weight.detach())


@dataclass
class CorpusWords:
    """A corpus's texts with BM25 over them, which rank 0 makes when it is first asked for."""

    texts: Sequence[str]
    index: LexicalIndex | None = None

    def of_query(self, query: str, numbers: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """(numbers, b) of one query: those of `numbers` and BM25's first `depth`, rising; b float64, see
        lexical_pairs.py."""
        self.index = self.index or LexicalIndex(self.texts)
        b_N = self.index.scaled(query)
        every = np.union1d(numbers[numbers >= 0], best_of(b_N, min(depth, len(b_N)))[1])
        return every, b_N[every]

    def beside(
        self, queries: Sequence[str], numbers_QK: np.ndarray, depth: int, watch: Callable[[int], None]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(numbers_QU int64, b_QU float64) of all queries, filled up with -1. On all ranks together."""

        def work(pause: Pause) -> tuple[np.ndarray, np.ndarray] | None:
            if collectives.rank() != 0:
                return None
            rows = []
            for query, numbers in zip(queries, numbers_QK, strict=True):
                pause()
                rows.append(self.of_query(query, numbers, depth))
                watch(1)
            width = max((len(numbers) for numbers, _ in rows), default=0)
            numbers_QU, b_QU = np.full((len(rows), width), -1, np.int64), np.zeros((len(rows), width))
            for row, (numbers, b) in enumerate(rows):
                numbers_QU[row, : len(numbers)], b_QU[row, : len(b)] = numbers, b
            return numbers_QU, b_QU

        found: tuple[np.ndarray, np.ndarray] = collectives.from_first(together(work, "the search by words"))
        return found


@dataclass(frozen=True)
class Queries:
    """The same queries as the retriever's tokens and as texts."""

    tokens: TokenTable
    texts: Sequence[str]


def search_by_sum(
    index: CorpusIndex,
    retriever: Retriever,
    queries: Queries,
    words: CorpusWords,
    wanted: SearchOptions,
    console: Console | None = None,
) -> Found:
    """(scores_QK float32, numbers_QK int64) of each query's best `wanted.depth` passages by (score descending, number
    ascending), on every rank. All ranks together."""
    console = console or Console(speaks=False)
    depth = max(DEPTH, wanted.depth)
    queries_QD = encode(retriever, queries.tokens, "query", wanted.batch)
    with console.progress(len(queries_QD), "searching", unit="query") as meter:
        near = index.search(queries_QD, depth, meter.advance)
    with console.progress(len(queries_QD), "searching by words", unit="query") as meter:
        numbers_QU, b_QU = words.beside(queries.texts, near[1], depth, meter.advance)
    scores_QU = complete(index.score(queries_QD, numbers_QU), numbers_QU, near)
    return first(scores_QU.astype(np.float64) + weight_of(retriever) * b_QU, numbers_QU, wanted.depth)


def complete(scores_QU: np.ndarray, numbers_QU: np.ndarray, near: Found) -> np.ndarray:
    """(Q, U) float32: the scores with those filled in that only the search knows, `near`."""
    filled_QU = scores_QU.copy()
    for filled, numbers, found, at in zip(filled_QU, numbers_QU, *near, strict=True):
        unknown = np.isnan(filled)
        if not unknown.any():
            continue
        known = dict(zip(at[at >= 0].tolist(), found[at >= 0].tolist(), strict=True))
        least = min(known.values(), default=0.0)
        filled[unknown] = [known.get(n, least) for n in numbers[unknown].tolist()]
    return filled_QU


def first(scores_QU: np.ndarray, numbers_QU: np.ndarray, depth: int) -> Found:
    """The `depth` best of each query; (MISS, -1) where there are fewer."""
    width = min(depth, numbers_QU.shape[1])
    scores_QK = np.full((len(numbers_QU), width), MISS, np.float32)
    numbers_QK = np.full((len(numbers_QU), width), -1, np.int64)
    for row, (scores, numbers) in enumerate(zip(scores_QU.astype(np.float32), numbers_QU, strict=True)):
        kept = best(scores[numbers >= 0], numbers[numbers >= 0], width)
        scores_QK[row, : len(kept[0])], numbers_QK[row, : len(kept[1])] = kept
    return scores_QK, numbers_QK
