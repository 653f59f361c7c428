"""How sure a mean over questions is, and whether two differ. Documents are drawn, with all of their questions, or have
their sign flipped: questions of one document share its passages and are right or wrong together.

Shapes: Q questions, G documents, M means that are looked at together, R random draws. Tested in
benchmarks/significance.py; docs/evaluation.md explains.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from statistics import NormalDist

import numpy as np

AT_ONCE = 1 << 17  # random numbers at a time: they stay in the processor's cache
MULTINOMIAL = 10  # times as long for the number of documents of one kind as for one document that is drawn
EXACT = 16  # documents up to which all 2^G signs are counted
TRUSTED = 20  # effective documents below which an interval is said to be too narrow

Clusters = Sequence[Hashable] | None


def cluster_sums(values_QM: np.ndarray, clusters: Clusters) -> tuple[np.ndarray, np.ndarray]:
    """The sums of the values of each document, (G, M), and the number of its questions, (G,); float64. Documents are in
    the order of their names, not of the rows: what is drawn later is the same for rows in another order.

    clusters: (Q,) names. None, as the list or as a name, makes a question a document of its own; these come last.
    """
    if clusters is None:
        return values_QM.astype(np.float64), np.ones(len(values_QM))
    named = sorted(dict.fromkeys(name for name in clusters if name is not None), key=str)
    place, alone = {name: n for n, name in enumerate(named)}, itertools.count(len(named))
    at_Q = np.array([next(alone) if name is None else place[name] for name in clusters], dtype=int)
    sizes_G = np.bincount(at_Q).astype(np.float64)
    sums_GM = np.zeros((len(sizes_G), values_QM.shape[1]))
    np.add.at(sums_GM, at_Q, values_QM)
    return sums_GM, sizes_G


def effective_number(sizes_G: np.ndarray) -> float:
    """`(sum n)^2 / sum n^2`: the number of documents of one size that would leave a mean as unsure (Kish 1965)."""
    return float(sizes_G.sum() ** 2 / (sizes_G**2).sum()) if len(sizes_G) else 0.0


def drawn_means(sums_GM: np.ndarray, sizes_G: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """(R, M): means over questions, each of G documents that are drawn with replacement. All M of one draw are of the
    same documents."""
    rng, count = np.random.default_rng(seed), len(sizes_G)
    parts_GP = np.column_stack([sums_GM, sizes_G])
    kinds_KP, numbers_K = np.unique(parts_GP, axis=0, return_counts=True)
    totals = []
    if len(kinds_KP) * MULTINOMIAL < count:  # many are alike, as questions are that are right or wrong: faster
        totals.append(rng.multinomial(count, numbers_K / count, draws) @ kinds_KP)
    else:
        for rows in _portions(draws, count):
            cells = rng.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
            times_RG = np.bincount(cells.ravel(), minlength=rows * count).reshape(rows, count)
            totals.append(times_RG.astype(np.float64) @ parts_GP)
    totals_RP = np.concatenate(totals)
    return totals_RP[:, :-1] / totals_RP[:, -1:]


def _portions(draws: int, count: int) -> Iterator[int]:
    """Numbers of draws of `count` random numbers each that are made at a time; `draws` in all."""
    step = max(1, AT_ONCE // count)
    return (min(step, draws - begin) for begin in range(0, draws, step))


def intervals(
    values_QM: np.ndarray, clusters: Clusters, draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> list[tuple[float, float]]:
    """`interval` of each column, where every question has all values: the documents are drawn once for all."""
    sums_GM, sizes_G = cluster_sums(values_QM, clusters)
    if len(sizes_G) < 2:
        return [(float("nan"), float("nan"))] * values_QM.shape[1]
    tail = expanded_tail((1 - level) / 2, effective_number(sizes_G))
    low_M, high_M = np.quantile(drawn_means(sums_GM, sizes_G, draws, seed), [tail, 1 - tail], axis=0)
    return list(zip(low_M.tolist(), high_M.tolist(), strict=True))


def interval(
    values: np.ndarray,
    clusters: Sequence[Hashable] | None,
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """The interval of a mean over questions, by a bootstrap that draws documents with all of their questions: the
    percentile interval, its tails expanded for the effective number of documents.

    Args:
        values: (Q,) one figure of each question, or its difference between two systems; NaN where there is none.
        clusters: (Q,) the document of each question; None, as a list or as a name, for questions that stand alone.
        draws: number of samples of documents.
        seed: of these draws: the same arguments give the same interval.
        level: the fraction of such intervals that should hold the true mean.

    Returns: lower and upper end, in the unit of the values; two NaN with fewer than two documents.
    """
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    names = None if clusters is None else [name for name, use in zip(clusters, known, strict=True) if use]
    return intervals(values[known][:, None], names, draws, seed, level)[0]


def expanded_tail(tail: float, effective: float) -> float:
    """The fraction to cut off at each end of the drawn means instead of `tail`.

    A plain percentile interval is too narrow in two ways: drawn means vary by G - 1 where G is right, and they take
    the place of a normal distribution where Student's t is right (Hesterberg 2015, "What teachers should know about the
    bootstrap": the expanded percentile interval). Documents differ in size, so that their effective number
    takes the place of G.
    """
    free = max(effective - 1, 1.0)
    return NormalDist().cdf(t_quantile(tail, free) * ((free + 1) / free) ** 0.5)


def t_quantile(fraction: float, free: float) -> float:
    """Quantile of Student's t, by its expansion in 1/free (Abramowitz and Stegun 26.7.5): to 0.3 % at the ends of a
    95 % interval from 4 degrees of freedom."""
    z = NormalDist().inv_cdf(fraction)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / free ** (n + 1) for n, term in enumerate(terms))


def randomisation_test(sums_GM: np.ndarray, draws: int = 10_000, seed: int = 0) -> list[float]:
    """Two-sided p of each column of differences, summed over the questions of a document.

    If two systems are alike, each document's difference could as well have had the other sign. p is the fraction of
    sign patterns whose total is at least as far from 0 as that which was found: of all patterns up to 16 documents
    with a difference, else of `draws` random ones, with the pattern that was found among them: (1 + k) / (1 + draws)
    (Phipson and Smyth 2010).
    """
    totals_M = np.abs(sums_GM.sum(axis=0))
    reached_M = totals_M - 1e-9 * np.abs(sums_GM).sum(axis=0)  # sums in another order are equal only up to rounding
    columns = [column[column != 0] for column in sums_GM.T]
    large = [n for n, column in enumerate(columns) if len(column) > EXACT]
    p = [
        1.0 if not len(c) or len(c) > EXACT else _exact_p(c, reached)
        for c, reached in zip(columns, reached_M, strict=True)
    ]
    if large:
        rng, hits = np.random.default_rng(seed), np.zeros(len(large))
        for rows in _portions(draws, len(sums_GM)):
            signs_RG = rng.integers(0, 2, (rows, len(sums_GM)), dtype=np.int8) * 2.0 - 1.0
            hits += (np.abs(signs_RG @ sums_GM[:, large]) >= reached_M[large]).sum(axis=0)
        for n, hit in zip(large, hits, strict=True):
            p[n] = float((1 + hit) / (1 + draws))
    return p


def _exact_p(sums_G: np.ndarray, reached: float) -> float:
    totals = np.zeros(1)
    for value in sums_G:
        totals = np.concatenate([totals + value, totals - value])
    return float((np.abs(totals) >= reached).mean())


def holm(p: Sequence[float]) -> list[float]:
    """p adjusted for the number of tests, in the order given: with a threshold of 0.05 for these, one false alarm or
    more among all tests happens in at most 5 % of families (Holm 1979)."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, n in enumerate(sorted(range(len(p)), key=lambda n: p[n])):
        highest = max(highest, min(1.0, p[n] * (len(p) - rank)))
        adjusted[n] = highest
    return adjusted
