"""Exact search with results that are bitwise the same for any sharding: one kernel for scores, ties by passage number.

The last bits of FAISS's flat scores depend on the shapes of the matrices (products of blocks from
`faiss_index.MATRIX_FROM` numbers on, another kernel below) and on its threads, and its order of ties is arbitrary. So
FAISS only finds candidates, with whichever kernel is fastest: all passages whose float32 score is within twice its
rounding error of the k-th best. These are scored again by `pair_scores` and ordered by (score descending, number
ascending). Each of the k best by these scores is a candidate in its shard, for any sharding, so the best of the k best
of all shards are the k best of all. The proof is at `threshold`.

The error bound of an inner product in floating point, in any order of summation: Higham, Accuracy and Stability of
Numerical Algorithms, section 3.1: |fl(x.y) - x.y| <= gamma_D |x|.|y|, gamma_D = D u / (1 - D u).

Shape legend: B queries, N passages, P pairs, D embedding, k results of a query.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MISS = np.finfo(np.float32).min  # FAISS's score of a passage that was not found; its number is -1
EXTRA = 32  # candidates fetched beyond k at first: enough unless there are ties
WIDEST = 1024  # more candidates than this are found by a scan: FAISS's heap is slow for them
BLOCK = 1 << 19  # float64 numbers processed at once, so that they stay in the cache

Near = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # (queries_BD, k) -> (scores_Bk, rows_Bk)


def pair_scores(left_PD: np.ndarray, right_PD: np.ndarray) -> np.ndarray:
    """(P,) float32 inner products of float32 rows; each depends only on its two rows, to the last bit.

    Products of float32 are exact in float64. They are added pairwise, in an order that depends only on D; each addition
    is a separate IEEE operation, so it rounds the same on any machine and in any block. The sum is rounded to float32
    once, at the end.
    """
    width = left_PD.shape[1]
    sums_PD = left_PD.astype(np.float64)
    sums_PD *= right_PD
    while width > 1:
        half = (width + 1) // 2
        sums_PD[:, : width - half] += sums_PD[:, half:width]
        width = half
    return sums_PD[:, 0].astype(np.float32) if sums_PD.shape[1] else np.zeros(len(left_PD), np.float32)


def error_bound(dimension: int, norm_products: np.ndarray, kind: type = np.float32) -> np.ndarray:
    """A bound on the error of an inner product summed in `kind`, in any order. norm_products: |x| |y|."""
    nu = dimension * float(np.finfo(kind).eps) / 2
    return norm_products * (1 + 1e-6) * nu / (1 - nu) + np.finfo(np.float32).tiny


def threshold(kth: np.ndarray, error: np.ndarray) -> np.ndarray:
    """The least approximate score that one of the k best may have; float64.

    kth: the k-th largest approximate score a. error: a bound on |a - b|, b being the float64 value that `pair_scores`
    rounds to c = R(b). At least k passages have a >= kth, so b >= kth - error, so c >= T = R(kth - error) (R keeps
    order): one of the k best has c >= T too, hence b > the float32 below T, hence a > that - error.
    """
    rounded = (kth - error).astype(np.float32)
    with np.errstate(over="ignore"):  # below a miss
        return np.nextafter(rounded, np.float32(-np.inf)).astype(np.float64) - error


def search_flat(
    vectors_ND: np.ndarray, queries_BD: np.ndarray, k: int, near: Near, norm: float, numbers_N: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(scores_Bk float32, numbers_Bk int64) of the k best passages by (`pair_scores` descending, number ascending).

    near: an inner-product search of these vectors with float32 scores, in any order of summation; k <= N. norm: the
    length of the longest vector. numbers_N: the passages' numbers; default: their rows. Where `near` finds fewer than
    k (a query that is no number), the rest is (MISS, -1).
    """
    N, D = vectors_ND.shape
    scores_Bk = np.full((len(queries_BD), k), MISS, np.float32)
    numbers_Bk = np.full((len(queries_BD), k), -1, np.int64)
    products_B = np.linalg.norm(queries_BD.astype(np.float64), axis=1) * norm
    exact_B = 2 * error_bound(D, products_B, np.float64)  # of `pair_scores`, before it rounds
    error_B = error_bound(D, products_B) + exact_B

    def keep(query: int, rows: np.ndarray) -> None:
        scores, numbers = best_rows(vectors_ND, queries_BD[query], rows, k, numbers_N)
        scores_Bk[query, : len(scores)], numbers_Bk[query, : len(scores)] = scores, numbers

    todo, width = np.arange(len(queries_BD)), min(N, k + EXTRA)
    while len(todo) and k:
        near_Bw, rows_Bw = near(queries_BD[todo], width)
        least_B = threshold(near_Bw[:, k - 1].astype(np.float64), error_B[todo])
        enough_B = (near_Bw[:, -1] < least_B) | (rows_Bw[:, -1] < 0) | (width == N)
        for place in np.flatnonzero(enough_B):
            keep(int(todo[place]), rows_Bw[place, (near_Bw[place] >= least_B[place]) & (rows_Bw[place] >= 0)])
        todo = todo[~enough_B]
        if width >= WIDEST:
            break
        width = min(N, 4 * width)
    for query in todo.tolist() if k else ():
        keep(query, scan(vectors_ND, queries_BD[query], k, exact_B[query]))
    return scores_Bk, numbers_Bk


def scan(vectors_ND: np.ndarray, query_D: np.ndarray, k: int, error: float) -> np.ndarray:
    """Rows of all candidates by scores in float64: of many nearly equal scores only the equal ones remain."""
    query, block = query_D.astype(np.float64), max(1, BLOCK // max(1, len(query_D)))
    starts = range(0, len(vectors_ND), block)
    scores_N = np.concatenate([vectors_ND[n : n + block].astype(np.float64) @ query for n in starts])
    scores_N[np.isnan(scores_N)] = -np.inf
    kth = np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k]
    return np.flatnonzero(scores_N >= threshold(kth[None], np.array([error]))[0])


def best_rows(
    vectors_ND: np.ndarray, query_D: np.ndarray, rows: np.ndarray, k: int, numbers_N: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and numbers of the k best among these rows."""
    block = max(1, BLOCK // max(1, len(query_D)))
    starts = range(0, max(1, len(rows)), block)
    parts = [vectors_ND[rows[n : n + block]] for n in starts]
    scores = np.concatenate([pair_scores(np.broadcast_to(query_D, part.shape), part) for part in parts])
    numbers = rows if numbers_N is None else numbers_N[rows]
    return best(scores, numbers, k)


def best(scores: np.ndarray, numbers: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best results of one query by (score descending, number ascending): the ranking rule of every search."""
    order = np.lexsort((numbers, -scores))[:k]
    return scores[order], numbers[order]
