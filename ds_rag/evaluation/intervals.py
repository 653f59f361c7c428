"""What stands beside a mean: over how many questions it runs, and its interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ds_rag.evaluation import significance
from ds_rag.evaluation.per_question import PerQuestion
from ds_rag.evaluation.signature import line

DRAWS, FEWER_DRAWS, MANY = 10_000, 1_000, 5_000  # of the bootstrap; fewer where there are many questions


def counts(found: PerQuestion) -> dict[str, int]:
    """How many questions have a value, for each metric."""
    return {name: int(np.isfinite(values).sum()) for name, values in found.metrics.items()}


def intervals(found: PerQuestion) -> dict[str, list[float] | None]:
    """The 95 % interval of each metric's mean, by a bootstrap that draws documents where the rows name them, and
    questions where they do not. None with fewer than two of them. It is an interval for these trained models on other
    documents, not for models that are trained again."""
    draws = DRAWS if len(found.ids) <= MANY else FEWER_DRAWS
    clusters = found.documents if any(found.documents) else None
    alike: dict[bytes, list[str]] = {}  # metrics that the same questions have: their documents are drawn once
    for name, values in found.metrics.items():
        alike.setdefault(np.isfinite(values).tobytes(), []).append(name)
    ends: dict[str, tuple[float, float]] = {}
    for names in alike.values():
        known = np.isfinite(found.metrics[names[0]])
        values_QM = np.stack([found.metrics[name][known] for name in names], axis=1)
        of_known = None if clusters is None else [name for name, use in zip(clusters, known, strict=True) if use]
        ends |= dict(zip(names, significance.intervals(values_QM, of_known, draws), strict=True))
    every = {name: ends[name] for name in found.metrics}
    return {name: list(pair) if all(map(math.isfinite, pair)) else None for name, pair in every.items()}


def trust(found: PerQuestion) -> dict[str, Any]:
    """`n`, `intervals` and `signature` of an evaluation, as its JSON has them."""
    signature = {"line": line(found.signature), **found.signature} if found.signature else {}
    return {"n": counts(found), "intervals": intervals(found), "signature": signature}


def show_interval(ends: list[float] | None) -> str:
    """For a table."""
    return f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "-"
