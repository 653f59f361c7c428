"""Can this reader teach this retriever? Told before training, from scores of passages alone: arrays in, figures out.

Shape legend: Q questions, W columns (K + 1), as in audit_scores.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from ds_rag.evaluation.audit_scores import (
    AuditScores,
    Mixture,
    area,
    found,
    gold_among,
    gold_first,
    gold_left_out,
    highest,
    log_mass,
)
from ds_rag.evaluation.significance import cluster_sums, interval, randomisation_test

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
LENGTHS = ((1, 4), (5, 9), (10, 19), (20, None))  # an answer's tokens
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the retriever's own temperature: scores need not be cosines
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
BETAS = (0.25, 0.5, 1.0, 2.0, 4.0)
RETRIEVER, READER, POSTERIOR = "retriever", "reader", "posterior tempered"  # names of pickers; the last as suggested
AMONG, LEFT_OUT = "gold among them", "gold left out"  # names of sets of passages
ENOUGH = 0.95  # of the rows that K passages reach: fewer passages that reach as many of these are enough


def tempers(temperature: float) -> list[Mixture]:
    """All that are tried, the plain posterior first: it wins a tie."""
    grid = [Mixture(temperature * f, a, b) for f, a, b in itertools.product(FACTORS, ALPHAS, BETAS)]
    return [Mixture(temperature), *grid]


def best_temper(scores: AuditScores, mask_QW: np.ndarray) -> Mixture:
    """The temper under which right passages are likeliest: the highest mean `log_mass`, a proper scoring rule, so that
    a teacher that is too sure of wrong passages loses. The plain posterior where no row has a right passage."""

    def likelihood(temper: Mixture) -> float:
        known = log_mass(scores.teacher(temper), mask_QW, scores.gold_QW)
        return float(known[np.isfinite(known)].mean()) if np.isfinite(known).any() else 0.0

    return max(tempers(scores.temperature), key=likelihood)


def gain_threshold(with_gold_Q: np.ndarray, without_Q: np.ndarray) -> float | None:
    """The gain that tells rows with a right passage from the same rows without one: the value at which the fraction
    kept of the first minus that of the second is largest (Youden 1950); of a range of such values, the lowest. None
    where either is empty."""
    yes, no = (np.sort(values[np.isfinite(values)]) for values in (with_gold_Q, without_Q))
    if not len(yes) or not len(no):
        return None
    kept = [float((yes >= limit).mean() - (no >= limit).mean()) for limit in yes]
    return float(yes[int(np.argmax(np.round(kept, 12)))])


def enough_passages(reached: dict[int, float]) -> int | None:
    """The smallest K that reaches ENOUGH of what the largest does. reached: K -> fraction of the rows with gold."""
    most = reached[max(reached)]
    return min(k for k, share in reached.items() if share >= ENOUGH * most) if most > 0 else None


def counts_of(K: int) -> list[int]:
    """The K that are looked at: powers of two from 2, and the largest."""
    return sorted({k for n in range(1, 20) if (k := 2**n) < K} | {K})


def pickers(scores: AuditScores, temper: Mixture) -> dict[str, np.ndarray]:
    """By name, the scores that may put a right passage first: (Q, W) each. A question has one answer, so that the
    reader alone ranks its passages alike by sum, by mean and for any alpha; beside the prior these differ."""
    return {
        RETRIEVER: scores.prior_QW,
        **scores.others,
        READER: scores.answer_QW,
        "posterior sum": scores.teacher(Mixture(scores.temperature)),
        "posterior mean": scores.teacher(Mixture(scores.temperature, 1.0)),
        POSTERIOR: scores.teacher(temper),
    }


def summary(values_Q: np.ndarray, clusters: Sequence[Hashable] | None) -> dict[str, Any]:
    """Mean, its 95 % interval by documents, and n; NaN is not counted."""
    known = values_Q[np.isfinite(values_Q)]
    ends = interval(values_Q, clusters) if len(known) > 1 else (float("nan"),) * 2
    mean = float(known.mean()) if len(known) else None
    return {"mean": mean, "interval": list(ends) if np.isfinite(ends).all() else None, "n": len(known)}


def compared(a_Q: np.ndarray, b_Q: np.ndarray, clusters: Sequence[Hashable] | None) -> dict[str, Any]:
    """`summary` of b - a, with the two-sided p of the paired test by documents."""
    both = np.isfinite(a_Q) & np.isfinite(b_Q)
    difference = np.where(both, b_Q - a_Q, np.nan)
    names = None if clusters is None else [name for name, use in zip(clusters, both, strict=True) if use]
    p = randomisation_test(cluster_sums(difference[both][:, None], names)[0])[0] if both.any() else None
    return {**summary(difference, clusters), "p": p}


def quantiles(values_Q: np.ndarray) -> dict[str, float]:
    known = values_Q[np.isfinite(values_Q)]
    return {f"{q:g}": float(np.quantile(known, q)) for q in QUANTILES} if len(known) else {}


def best_gains(scores: AuditScores) -> dict[str, np.ndarray]:
    """(Q,) each row's best gain in three sets of passages; NaN where it has none, in the last two also where it has no
    right passage."""
    has_gold = scores.gold_QW.any(axis=1, keepdims=True)
    sets = {
        "found": found(scores, scores.K),
        AMONG: gold_among(scores, scores.K) & has_gold,
        LEFT_OUT: gold_left_out(scores) & has_gold,
    }
    return {name: highest(scores.gain_QW, mask_QW) for name, mask_QW in sets.items()}


def gain_figures(scores: AuditScores, best: dict[str, np.ndarray], threshold: float | None) -> dict[str, Any]:
    """Quantiles of each row's best gain, of its distance to the second, and how many rows the threshold keeps."""
    two = np.sort(np.where(found(scores, scores.K), scores.gain_QW, -np.inf), axis=1)[:, -2:]
    margin_Q = np.full(len(two), np.nan)
    known = np.isfinite(two).all(axis=1)
    margin_Q[known] = two[known, 1] - two[known, 0]
    kept = {
        name: float((values[np.isfinite(values)] >= threshold).mean())
        for name, values in best.items()
        if threshold is not None and np.isfinite(values).any()
    }
    return {
        "best": {name: quantiles(values) for name, values in best.items()},
        "margin": quantiles(margin_Q),
        "kept_by_threshold": kept,
    }


def by_count(scores: AuditScores, chosen: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """For each K, how many rows have a right passage among the first K, and how often each picker puts one first of K
    with it among them."""
    lines = []
    for k in counts_of(scores.K):
        mask_QW = gold_among(scores, k)
        reached = (found(scores, k) & scores.gold_QW).any(axis=1)
        means = {name: mean_of(gold_first(v, mask_QW, scores.gold_QW)) for name, v in chosen.items()}
        lines.append({"K": k, "gold found": float(reached.mean()), "gold first": means})
    return lines


def by_length(scores: AuditScores, firsts: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The same by the number of the answer's tokens. firsts: of each picker, (Q,)."""
    lines = []
    for low, high in LENGTHS:
        use = (scores.lengths_Q >= low) & (scores.lengths_Q <= (high or np.inf))
        count = int((use & np.isfinite(next(iter(firsts.values())))).sum())
        if count:
            name = f"{low}-{high}" if high else f"{low} and more"
            means = {picker: mean_of(values[use]) for picker, values in firsts.items()}
            lines.append({"tokens": name, "n": count, "gold first": means})
    return lines


def by_temperature(scores: AuditScores, mask_QW: np.ndarray) -> list[dict[str, Any]]:
    """How often the posterior puts a right passage first, beta 1, for each temperature and alpha."""

    def first(temper: Mixture) -> float | None:
        return mean_of(gold_first(scores.teacher(temper), mask_QW, scores.gold_QW))

    at = [scores.temperature * f for f in FACTORS]
    return [{"temperature": t, "gold first": {f"alpha {a:g}": first(Mixture(t, a)) for a in ALPHAS}} for t in at]


def mean_of(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def agreement(scores: AuditScores, temper: Mixture) -> float | None:
    """How often prior and teacher have the same first passage, of the rows with two or more."""
    mask_QW = found(scores, scores.K)
    rows = mask_QW.sum(axis=1) > 1
    first = [np.where(mask_QW, v, -np.inf)[rows].argmax(axis=1) for v in (scores.prior_QW, scores.teacher(temper))]
    return float((first[0] == first[1]).mean()) if rows.any() else None


def settings(temper: Mixture, threshold: float | None, enough: int | None) -> dict[str, Any]:
    """By the names of the settings of training, where there is one."""
    return {
        "temperature": temper.temperature,
        "answer_exponent": temper.alpha,
        "answer_weight": temper.beta,
        "gate_gain": threshold,
        "candidates": enough,
    }


def first_figures(
    scores: AuditScores, values_QW: np.ndarray, first_Q: np.ndarray, among_QW: np.ndarray
) -> dict[str, Any]:
    """Of one picker. "as found": rows whose right passages were not found count as 0."""
    found_QW = found(scores, scores.K)
    missed_Q = scores.gold_QW.any(axis=1) & ~(found_QW & scores.gold_QW).any(axis=1)
    as_found_Q = np.where(missed_Q, 0.0, gold_first(values_QW, found_QW, scores.gold_QW))
    return {
        AMONG: summary(first_Q, scores.clusters),
        "as found": summary(as_found_Q, scores.clusters),
        "auc": mean_of(area(values_QW, among_QW, scores.gold_QW)),
    }


def audit(scores: AuditScores) -> dict[str, Any]:
    """All figures. docs/audit.md has their names and meaning.

    Args:
        scores: of one question at least; rows without a right passage count where none is needed.

    Returns: plain numbers, strings, lists and dicts, as JSON has them; None for what no row can tell.
    """
    among_QW, clusters = gold_among(scores, scores.K), scores.clusters
    temper = best_temper(scores, among_QW)
    every = pickers(scores, temper)
    firsts = {name: gold_first(values, among_QW, scores.gold_QW) for name, values in every.items()}
    best = best_gains(scores)
    threshold = gain_threshold(best[AMONG], best[LEFT_OUT])
    counts = by_count(scores, every)
    enough = enough_passages({line["K"]: line["gold found"] for line in counts})
    return {
        "gold_first": {name: first_figures(scores, every[name], firsts[name], among_QW) for name in every},
        "by_temperature": by_temperature(scores, among_QW),
        "by_length": by_length(scores, firsts),
        "by_K": counts,
        "gains": gain_figures(scores, best, threshold),
        "agreement": agreement(scores, temper),
        "reader_over": {name: compared(firsts[name], firsts[READER], clusters) for name in (RETRIEVER, *scores.others)},
        "posterior_over_retriever": compared(firsts[RETRIEVER], firsts[POSTERIOR], clusters),
        "suggested": settings(temper, threshold, enough),
    }
