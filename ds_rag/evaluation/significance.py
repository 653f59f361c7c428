"""How sure a mean over questions is: intervals that draw documents, since questions of one document go together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

AT_ONCE = 1 << 21  # random numbers that lie in memory at a time


def cluster_sums(values: np.ndarray, clusters: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """The sum of the values of each cluster and their number, (G,) float64 each, in the order of first appearance.

    values: (Q,) float, NaN where a question has none: it is left out. clusters: (Q,) names; None as a list makes each
    question its own cluster, and so does the name None.
    """
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    places: dict[object, int] = {}
    names = [None] * len(values) if clusters is None else clusters
    keys = [("own", i) if name is None else ("named", name) for i, name in enumerate(names)]
    at = np.array([places.setdefault(key, len(places)) for key, use in zip(keys, known, strict=True) if use], dtype=int)
    sizes = np.bincount(at, minlength=len(places)).astype(np.float64)
    return np.bincount(at, weights=values[known], minlength=len(places)), sizes


def drawn_means(sums: np.ndarray, sizes: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """(draws,) means over questions, each of as many clusters as there are, drawn with replacement."""
    rng, count = np.random.default_rng(seed), len(sums)
    means, step = [], max(1, AT_ONCE // count)
    for begin in range(0, draws, step):
        rows = min(step, draws - begin)
        cells = rng.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        times = np.bincount(cells.ravel(), minlength=rows * count).reshape(rows, count)
        means.append((times @ sums) / (times @ sizes))
    return np.concatenate(means)


def interval(
    values: np.ndarray,
    clusters: Sequence[Hashable] | None,
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """The interval of a mean over questions, by a bootstrap that draws documents with all of their questions.

    Args:
        values: (Q,) one figure of each question, or its difference between two systems; NaN where there is none.
        clusters: (Q,) the document of each question; None, as a list or as a name, for questions that stand alone.
        draws: number of samples of documents.
        seed: of these draws: the same arguments give the same interval.
        level: the fraction of such intervals that should hold the true mean.

    Returns: lower and upper end, in the unit of the values; two NaN with fewer than two documents.
    """
    sums, sizes = cluster_sums(values, clusters)
    if len(sums) < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(drawn_means(sums, sizes, draws, seed), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
