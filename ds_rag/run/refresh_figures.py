"""The figures of a refresh of the index: how old its vectors are, and what a partial update has changed."""

from __future__ import annotations

import numpy as np
import torch

from ds_rag.index.building import EncodedShard
from ds_rag.runtime import collectives


def shard_figures(shard: EncodedShard, at: int, count: int, device: torch.device) -> dict[str, float]:
    """Over all ranks: the ages of the vectors in steps, at step `at` (mean, maximum, median, 90 %), and the statistics
    of a partial update. count: passages of the corpus."""
    every = collectives.gather_objects((np.unique(at - shard.steps_n, return_counts=True), shard.figures))
    ages, counts = (np.concatenate([pair[n] for pair, _ in every]) for n in (0, 1))
    order = np.argsort(ages, kind="stable")
    ages, upto = ages[order], np.cumsum(counts[order])
    found = {"index_age": float((ages * counts[order]).sum() / count), "index_age_max": float(ages[-1])}
    for quantile in (0.5, 0.9):
        place = np.searchsorted(upto, quantile * upto[-1])
        found[f"index_age_p{100 * quantile:.0f}"] = float(ages[place])
    if all(figures for _, figures in every):
        sums = {name: sum(figures[name] for _, figures in every) for name in every[0][1]}
        found |= {name: sums[name] / max(1.0, sums["sampled"]) for name in ("drift", "drift_moved")}
        found["drift_left"] = sums["drift_left"] / count
        found["encoded"] = sums["encoded"] / count
    return found
