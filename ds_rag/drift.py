"""Which passages' vectors have moved: learnt from a sample of them that is encoded again.

The drift of a passage is 1 - cos(vector in the index, vector by today's weights). It is known for the sample alone. A
passage that is not in it is taken to drift as its neighbours do: training moves regions of the space, those that
its rows and their candidates lie in. So the estimate is the mean, over the `NEIGHBOURS` nearest of the sample by the
vectors in the index, of drift per step of age, times the passage's own age: one that is left alone comes up again.

Shape legend: n passages, s of the sample, D embedding.
"""

from __future__ import annotations

import numpy as np

SAMPLE = 0.02  # of a rank's passages
LEAST_SAMPLE, MOST_SAMPLE = 64, 4096  # the most: so that looking up neighbours stays far below encoding
NEIGHBOURS = 4
TOLERATED = 2e-3  # drift that `auto` leaves alone: the vector is turned by less than 4 degrees
BLOCK = 4096  # passages compared with the sample at once


def sample_rows(count: int, seed: list[int]) -> np.ndarray:
    """Rows of the sample, ascending: SAMPLE of them, within bounds."""
    size = min(count, MOST_SAMPLE, max(LEAST_SAMPLE, round(SAMPLE * count)))
    return np.sort(np.random.default_rng(seed).choice(count, size=size, replace=False))


def drift(old_nD: np.ndarray, new_nD: np.ndarray) -> np.ndarray:
    """(n,) 1 - cos, float64, 0 to 2; 1 where a vector is zero."""
    old, new = old_nD.astype(np.float64), new_nD.astype(np.float64)
    norms = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
    cosines = np.divide((old * new).sum(1), norms, out=np.zeros(len(old)), where=norms > 0)
    return 1 - np.clip(cosines, -1, 1)


def estimate(vectors_nD: np.ndarray, ages_n: np.ndarray, sample_s: np.ndarray, drift_s: np.ndarray) -> np.ndarray:
    """(n,) estimated drift of every passage, float64. ages_n: steps since each was encoded, at least 1."""
    anchors_sD = vectors_nD[sample_s].astype(np.float32)
    rates_s = drift_s / ages_n[sample_s]
    count = min(NEIGHBOURS, len(sample_s))
    found = np.zeros(len(vectors_nD))
    for start in range(0, len(vectors_nD), BLOCK):
        near_bs = np.asarray(vectors_nD[start : start + BLOCK]) @ anchors_sD.T
        nearest_bk = np.argpartition(-near_bs, count - 1, axis=1)[:, :count]
        found[start : start + BLOCK] = rates_s[nearest_bk].mean(1)
    return found * ages_n


def choose_rows(estimate_n: np.ndarray, sample_s: np.ndarray, fraction: str) -> np.ndarray:
    """Rows to encode again beside the sample, ascending: those of the largest estimates, as many as make that share of
    all with it; 'auto': all above TOLERATED."""
    others = np.delete(np.arange(len(estimate_n)), sample_s)
    if fraction == "auto":
        return others[estimate_n[others] > TOLERATED]
    size = max(0, int(np.ceil(float(fraction) * len(estimate_n))) - len(sample_s))
    return np.sort(others[np.argsort(-estimate_n[others], kind="stable")[:size]])
