"""The index over a corpus, on rank 0 or in shards on all ranks. Searches give every rank the same results.

Shape legend: B queries, n passages of a part, N of the corpus, D embedding, k results of a query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ds_rag.index.back_ends import VectorIndex, build_vector_index
from ds_rag.index.exact import BLOCK, MISS, pair_scores, search_flat
from ds_rag.runtime import collectives
from ds_rag.runtime.long_waits import Pause, together

# Queries searched at once, between two places where a search may be stopped: one block of FAISS, or fewer if that would
# take a core minutes. WORK counts products of two numbers.
MOST_QUERIES, LEAST_QUERIES, WORK = 4096, 64, 1 << 42

Found = tuple[np.ndarray, np.ndarray]  # scores_Bk float32, numbers_Bk int64
Watch = Callable[[int], None]


def ignore(count: int) -> None:
    """A watch that does nothing."""


@dataclass
class Part:
    """An index with the numbers of its passages; None: 0 .. n - 1."""

    index: VectorIndex
    numbers_n: np.ndarray | None = None
    norm: float | None = None  # length of the longest vector of an exact index; computed when needed

    def search(self, queries_BD: np.ndarray, k: int, cores: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(scores_Bk float32, numbers_Bk int64), best first: exact for an exact index (exact.py), else the results of
        its back end. If there are fewer than k results, the rest is (MISS, -1). cores: the least number to use."""
        queries_BD, most = np.ascontiguousarray(queries_BD, dtype=np.float32), min(k, self.index.count)
        vectors_nD = self.index.exact_ND
        if vectors_nD is not None:
            if self.norm is None:
                self.norm = longest(vectors_nD)
            near = lambda q, width: self.index.search(q, width, cores)  # noqa: E731
            scores, numbers = search_flat(vectors_nD, queries_BD, most, near, self.norm, self.numbers_n)
        else:
            scores, numbers = self.index.search(queries_BD, most, cores)
            if self.numbers_n is not None:
                numbers = np.where(numbers >= 0, self.numbers_n[numbers], -1)
        missing = ((0, 0), (0, k - most))
        return np.pad(scores, missing, constant_values=MISS), np.pad(numbers, missing, constant_values=-1)

    def score(self, queries_BD: np.ndarray, numbers_BK: np.ndarray) -> np.ndarray:
        """(B, K) float32: the scores of these passages, equal to those that a search finds. NaN for passages of other
        parts, and for all of an approximate index, which has no vectors."""
        scores_BK, vectors_nD = np.full(numbers_BK.shape, np.nan, np.float32), self.index.exact_ND
        if vectors_nD is None:
            return scores_BK
        queries_BD = np.asarray(queries_BD, dtype=np.float32)
        numbers_n = self.numbers_n
        order_n = np.zeros(0, np.int64) if numbers_n is None else np.argsort(numbers_n)
        for query_D, numbers, scores in zip(queries_BD, numbers_BK, scores_BK, strict=True):
            rows, here = numbers, numbers >= 0
            if numbers_n is not None:
                places = np.searchsorted(numbers_n, numbers, sorter=order_n)
                rows = order_n[np.minimum(places, len(order_n) - 1)]
                here = numbers_n[rows] == numbers
            left_KD = np.broadcast_to(query_D, (int(here.sum()), len(query_D)))
            scores[here] = pair_scores(left_KD, vectors_nD[rows[here]])
        return scores_BK


def longest(vectors_nD: np.ndarray) -> float:
    """The length of the longest vector, ignoring NaN."""
    step = max(1, BLOCK // max(1, vectors_nD.shape[1]))
    norms = [
        np.linalg.norm(vectors_nD[n : n + step].astype(np.float64), axis=1) for n in range(0, len(vectors_nD), step)
    ]
    return max((float(x[np.isfinite(x)].max(initial=0.0)) for x in norms), default=0.0)


def build_part(
    vectors_nD: np.ndarray, factory: str, numbers_n: np.ndarray | None = None, cores: int = 1
) -> Part | None:
    """The part over these vectors, which may be memory-mapped; None if there are no vectors. cores: the least number to
    use."""
    return Part(build_vector_index(vectors_nD, factory, cores), numbers_n) if len(vectors_nD) else None


@dataclass
class CorpusIndex:
    """parts: what this rank searches. With a merged index rank 0 has one part and the others none; with shards each
    rank has its own.

    A flat index gives the same scores and numbers, ties included, for any number of parts; each part of an approximate
    index is searched with the parameters of a single index.
    """

    parts: list[Part]
    count: int  # passages of the corpus

    def search(self, queries_BD: np.ndarray, k: int, watch: Watch = ignore) -> Found:
        """(scores_Bk float32, numbers_Bk int64) on every rank, by (score descending, number ascending). To be called on
        all ranks with the same queries. k is at most the size of the corpus; (MISS, -1) fills up if an approximate
        index finds fewer.

        watch: called with the number of further queries done. Waiting ranks do not time out, however long it takes.
        Raises Stopped if the ranks agree to stop meanwhile.
        """
        k = min(k, self.count)
        found = together(lambda pause: self._search_parts(queries_BD, k, self._cores(), pause, watch), "the search")
        return merge_results([pair for rank in collectives.gather_objects(found) for pair in rank], k)

    def search_here(self, queries_BD: np.ndarray, k: int) -> Found:
        """The same on this rank alone, which must have all parts; other ranks may search at the same time."""
        k = min(k, self.count)
        return merge_results(self._search_parts(queries_BD, k, collectives.cores_of_rank(), lambda: None, ignore), k)

    def score(self, queries_BD: np.ndarray, numbers_BK: np.ndarray) -> np.ndarray:
        """(B, K) float32 on every rank: the scores of given passages; NaN where the number is -1, and of an approximate
        index. To be called on all ranks with the same queries and passages."""
        found_BK = np.full(numbers_BK.shape, np.nan, np.float32)
        for rank in collectives.gather_objects([part.score(queries_BD, numbers_BK) for part in self.parts]):
            for scores_BK in rank:
                found_BK = np.where(np.isnan(found_BK), scores_BK, found_BK)
        return found_BK

    def _search_parts(self, queries_BD: np.ndarray, k: int, cores: int, pause: Pause, watch: Watch) -> list[Found]:
        """The results of each part, for some queries at a time. cores: the number to use; with one process
        OMP_NUM_THREADS decides."""
        step = min(MOST_QUERIES, max(LEAST_QUERIES, WORK // max(1, self.count * queries_BD.shape[1])))
        found: list[list[Found]] = [[] for _ in self.parts]
        for start in range(0, max(1, len(queries_BD)), step):
            pause()
            some_BD = queries_BD[start : start + step]
            for part, pairs in zip(self.parts, found, strict=True):
                pairs.append(part.search(some_BD, k, cores if collectives.world() > 1 else 1))
            watch(len(some_BD))
        return [(np.concatenate([s for s, _ in pairs]), np.concatenate([n for _, n in pairs])) for pairs in found]

    def _cores(self) -> int:
        """The cores to use: all of the host, if the other ranks have nothing to search."""
        has_all = sum(part.index.count for part in self.parts) == self.count
        return collectives.cores() if has_all else collectives.cores_of_rank()


def merge_results(found: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best results of several searches with the same queries in different passages; misses come last."""
    if len(found) == 1:
        return found[0]
    scores, numbers = (np.concatenate([pair[n] for pair in found], axis=1) for n in (0, 1))
    order = np.lexsort((np.where(numbers < 0, np.iinfo(np.int64).max, numbers), -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)
