"""The index over a corpus, whole on rank 0 or in shards on all ranks; every rank searches it, and finds the same.

Shape legend: B queries, n passages of a part, N of the corpus, D embedding, k results of a query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ds_rag.index.exact import BLOCK, MISS, search_flat
from ds_rag.index.faiss_index import build_index, flat_vectors, search, threads
from ds_rag.runtime import collectives
from ds_rag.runtime.long_waits import Pause, together

# Queries searched at once, and between two places where a search may end: as many as one block of FAISS's holds, or
# fewer where a core would take minutes (products of two numbers).
MOST_QUERIES, LEAST_QUERIES, WORK = 4096, 64, 1 << 42

Found = tuple[np.ndarray, np.ndarray]  # scores_Bk float32, numbers_Bk int64
Watch = Callable[[int], None]


def ignore(count: int) -> None:
    """A watch that does nothing."""


@dataclass
class Part:
    """A FAISS index and the numbers of the passages in it; None: they are 0 .. n - 1."""

    index: Any
    numbers_n: np.ndarray | None = None
    norm: float | None = None  # the longest vector's length, where the index is flat; found when it is needed

    def search(self, queries_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores_Bk float32, numbers_Bk int64), best first: flat exactly, by exact.py; another kind as FAISS has it.
        Where there are fewer than k, or an approximate index found fewer, the rest is (MISS, -1)."""
        queries_BD, most = np.ascontiguousarray(queries_BD, dtype=np.float32), min(k, self.index.ntotal)
        vectors_nD = flat_vectors(self.index)
        if vectors_nD is not None:
            if self.norm is None:
                self.norm = longest(vectors_nD)
            near = lambda q, width: search(self.index, q, width)  # noqa: E731
            scores, numbers = search_flat(vectors_nD, queries_BD, most, near, self.norm, self.numbers_n)
        else:
            scores, numbers = search(self.index, queries_BD, most)
            if self.numbers_n is not None:
                numbers = np.where(numbers >= 0, self.numbers_n[numbers], -1)
        missing = ((0, 0), (0, k - most))
        return np.pad(scores, missing, constant_values=MISS), np.pad(numbers, missing, constant_values=-1)


def longest(vectors_nD: np.ndarray) -> float:
    """The length of the longest vector; those that are no number do not count."""
    step = max(1, BLOCK // max(1, vectors_nD.shape[1]))
    norms = [
        np.linalg.norm(vectors_nD[n : n + step].astype(np.float64), axis=1) for n in range(0, len(vectors_nD), step)
    ]
    return max((float(x[np.isfinite(x)].max(initial=0.0)) for x in norms), default=0.0)


def build_part(vectors_nD: np.ndarray, factory: str, numbers_n: np.ndarray | None = None) -> Part | None:
    """None where there are no vectors. They may be mapped from the disk: FAISS reads them through."""
    return Part(build_index(vectors_nD, factory), numbers_n) if len(vectors_nD) else None


@dataclass
class CorpusIndex:
    """`parts`: what this rank searches. Merged, rank 0 has one part and the others none; in shards, each rank its own.

    A flat index gives the same scores and numbers, ties included, however many parts there are; of an approximate one
    each part is searched as deep as the whole would be.
    """

    parts: list[Part]
    count: int  # passages of the corpus

    def search(self, queries_BD: np.ndarray, k: int, watch: Watch = ignore) -> Found:
        """(scores_Bk float32, numbers_Bk int64) on every rank, by (score descending, number ascending); all ranks call
        it with the same queries. k is cut to the corpus; (MISS, -1) where an approximate index found fewer.

        watch: told how many queries more are done. However long it takes, no rank that waits runs into a time-out.
        Raises Stopped where the ranks agree to stop meanwhile.
        """
        k = min(k, self.count)
        found = together(lambda pause: self._search_parts(queries_BD, k, self._cores(), pause, watch), "the search")
        return merge_results([pair for rank in collectives.gather_objects(found) for pair in rank], k)

    def search_here(self, queries_BD: np.ndarray, k: int) -> Found:
        """The same where this rank has all the parts, without the other ranks, which may search meanwhile."""
        k = min(k, self.count)
        return merge_results(self._search_parts(queries_BD, k, collectives.cores_of_rank(), lambda: None, ignore), k)

    def _search_parts(self, queries_BD: np.ndarray, k: int, cores: int, pause: Pause, watch: Watch) -> list[Found]:
        """Of each part, some queries at a time. cores: that may be used; in one process OMP_NUM_THREADS says it."""
        step = min(MOST_QUERIES, max(LEAST_QUERIES, WORK // max(1, self.count * queries_BD.shape[1])))
        found: list[list[Found]] = [[] for _ in self.parts]
        with threads(cores if collectives.world() > 1 else 1):
            for start in range(0, max(1, len(queries_BD)), step):
                pause()
                some_BD = queries_BD[start : start + step]
                for part, pairs in zip(self.parts, found, strict=True):
                    pairs.append(part.search(some_BD, k))
                watch(len(some_BD))
        return [(np.concatenate([s for s, _ in pairs]), np.concatenate([n for _, n in pairs])) for pairs in found]

    def _cores(self) -> int:
        """Where the other ranks have nothing to search, those of the whole host."""
        whole = sum(part.index.ntotal for part in self.parts) == self.count
        return collectives.cores() if whole else collectives.cores_of_rank()


def merge_results(found: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of several searches of the same queries in different passages; misses come last."""
    if len(found) == 1:
        return found[0]
    scores, numbers = (np.concatenate([pair[n] for pair in found], axis=1) for n in (0, 1))
    order = np.lexsort((np.where(numbers < 0, np.iinfo(np.int64).max, numbers), -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)
