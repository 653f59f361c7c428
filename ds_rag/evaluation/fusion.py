"""One ranking of two: the passages that a retriever found and those that BM25 found.

The rule: each side's scores of a query are standardised, (score - mean) / standard deviation, over the passages that
this side has found for it (its first `DEPTH`, so all of a small corpus), and added, the words' with weight `WEIGHT`. A
passage that one side has not found has the last of that side's found scores there, which is the most that it can have.
Over all passages of a large corpus BM25's standard deviation would be that of many zeros, and BM25 would decide alone.

Why this and not reciprocal rank fusion (Cormack, Clarke and Buettcher 2009, k = 60): ranks forget by how much a side
prefers a passage. docs/evaluation.md has both measured.

Shape legend: Q queries, K passages of a query, best first.
"""

from __future__ import annotations

import numpy as np

from ds_rag.index.exact import MISS, best
from ds_rag.index.lexical import DEPTH, spread

WEIGHT = 1.0  # of the words' standardised scores beside the retriever's
TEMPERATURE = 1.0  # of the summed scores, which are in standard deviations, in a prior over passages

Found = tuple[np.ndarray, np.ndarray]  # scores_QK float32, numbers_QK int64; number -1: fewer were found


def fuse(vectors: Found, words: Found, depth: int) -> Found:
    """(scores_QK float32, numbers_QK int64), the `depth` best of each query by (score descending, number ascending);
    (MISS, -1) where both sides found fewer. vectors, words: what each side found for the same queries."""
    sides = [array[:, :DEPTH] for array in (*vectors, *words)]
    rows = [fuse_row(*query) for query in zip(*sides, strict=True)]
    width = min(depth, max((len(numbers) for _, numbers in rows), default=0))
    scores_QK, numbers_QK = np.full((len(rows), width), MISS, np.float32), np.full((len(rows), width), -1, np.int64)
    for row, (scores, numbers) in enumerate(rows):
        kept = best(scores.astype(np.float32), numbers, width)
        scores_QK[row, : len(kept[0])], numbers_QK[row, : len(kept[1])] = kept
    return scores_QK, numbers_QK


def fuse_row(
    v_scores: np.ndarray, v_numbers: np.ndarray, w_scores: np.ndarray, w_numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(scores float64, numbers) of all passages that either side found for one query, by number."""
    numbers = np.union1d(v_numbers[v_numbers >= 0], w_numbers[w_numbers >= 0])
    total = np.zeros(len(numbers))
    for scores, found, weight in ((v_scores, v_numbers, 1.0), (w_scores, w_numbers, WEIGHT)):
        standard = standardise(scores[found >= 0])
        if len(standard):
            side = np.full(len(numbers), standard.min())
            side[np.searchsorted(numbers, found[found >= 0])] = standard
            total += weight * side
    return total, numbers


def standardise(scores: np.ndarray) -> np.ndarray:
    """(scores - mean) / standard deviation, in float64; zeros where all are equal (a query with no known word)."""
    wide, scale = scores.astype(np.float64), spread(scores)
    return (wide - wide.mean()) / scale if scale else np.zeros(len(wide))
