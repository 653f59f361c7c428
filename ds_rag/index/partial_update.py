"""Encoding only a part of the corpus again: a sample that is encoded again shows how vectors have changed.

Training changes all vectors in a similar way, nearly by a linear map. An index in which only some vectors are new
retrieves worse than one in which none is (docs/index_stage.md has measurements). So the map is fitted on the sample by
ridge regression and applied to the vectors that are not encoded again. The error of the map, the drift, is known only
for the sample (leave-one-out, so that the fit is not judged on its own data). The drift of another passage is estimated
as that of its neighbours in the sample, per step since they were last encoded, times its own number of steps; so a
passage that is not encoded for long is chosen in the end. The passages with the largest estimates are encoded again.

Drift is 1 - cos(vector in the index, vector by today's weights).

Shape legend: n passages, s of the sample, D embedding.
"""

from __future__ import annotations

import numpy as np

SAMPLE = 0.02  # fraction of a rank's passages
LEAST_SAMPLE, MOST_SAMPLE = 128, 4096  # the maximum keeps finding neighbours much cheaper than encoding
RIDGE = 0.1  # times the mean squared length of a vector
NEIGHBOURS = 4
TOLERATED = 2e-3  # drift that `auto` accepts: the vector is rotated by less than 4 degrees
BLOCK = 4096  # passages compared with the sample at once


def sample_rows(count: int, seed: list[int]) -> np.ndarray:
    """Rows of the sample, ascending: the fraction SAMPLE of all, within LEAST_SAMPLE and MOST_SAMPLE."""
    size = min(count, MOST_SAMPLE, max(LEAST_SAMPLE, round(SAMPLE * count)))
    return np.sort(np.random.default_rng(seed).choice(count, size=size, replace=False))


def drift(old_nD: np.ndarray, new_nD: np.ndarray) -> np.ndarray:
    """(n,) 1 - cos, float64, 0 to 2; 1 where a vector is zero."""
    old, new = old_nD.astype(np.float64), new_nD.astype(np.float64)
    norms = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
    cosines = np.divide((old * new).sum(1), norms, out=np.zeros(len(old)), where=norms > 0)
    return 1 - np.clip(cosines, -1, 1)


def fit_map(old_sD: np.ndarray, new_sD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(map_DD float32 for `move`, leave-one-out drift_s that remains after mapping).

    Displacements new - old are regressed on old: M = (A'A + r I)^-1 A'(new - old). A passage's own residual, had it
    been left out, is e / (1 - h), h its leverage (Hastie et al., The Elements of Statistical Learning, 7.10.1).
    """
    old, new = old_sD.astype(np.float64), new_sD.astype(np.float64)
    D = old.shape[1]
    ridge = RIDGE * max(float((old**2).sum(1).mean()) if len(old) else 0.0, 1e-12)
    inverse_DD = np.linalg.inv(old.T @ old + ridge * np.eye(D))
    map_DD = inverse_DD @ (old.T @ (new - old))
    leverage_s = ((old @ inverse_DD) * old).sum(1)
    residual_sD = (new - old - old @ map_DD) / (1 - leverage_s)[:, None]
    return map_DD.astype(np.float32), drift(new - residual_sD, new)


def move(vectors_nD: np.ndarray, map_DD: np.ndarray, unit: bool) -> np.ndarray:
    """(n, D) float32 vectors after applying the map; unit: normalised to length 1."""
    moved_nD = np.asarray(vectors_nD) + np.asarray(vectors_nD) @ map_DD
    if unit:
        moved_nD /= np.maximum(np.linalg.norm(moved_nD, axis=1, keepdims=True), 1e-12)
    return moved_nD


def estimate(vectors_nD: np.ndarray, ages_n: np.ndarray, sample_s: np.ndarray, drift_s: np.ndarray) -> np.ndarray:
    """(n,) estimated drift of every passage, float64: the mean drift per step of its nearest neighbours in the sample,
    times its own age. ages_n: steps since each was encoded, at least 1."""
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
    """Rows to encode again in addition to the sample, ascending: those with the largest estimates, so that both
    together are `fraction` of all; 'auto': all above TOLERATED."""
    others = np.delete(np.arange(len(estimate_n)), sample_s)
    if fraction == "auto":
        return others[estimate_n[others] > TOLERATED]
    size = max(0, int(np.ceil(float(fraction) * len(estimate_n))) - len(sample_s))
    return np.sort(others[np.argsort(-estimate_n[others], kind="stable")[:size]])
