"""The scores that an audit looks at, which passages count, and what single rows tell.

A column is a passage of a question. The first K are those that were found, best first; the last is a labelled passage
that was not found, if there is one.

    prior    s, the retriever's score; its log-probability is s / temperature, normalised
    answer   G = log p(y|x,z), summed over the answer's tokens, in nats
    gain     u = (G - G_0) / |y|: what a token of the answer gains over no passage; G_0 = log p(y|x)
    teacher  s / temperature + beta G / |y|^alpha: alpha 0, beta 1 is the posterior by "sum", alpha 1 that by "mean"

Shape legend: Q questions, W columns (K + 1).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ds_rag.evaluation.metrics import TIE
from ds_rag.losses import Temper


@dataclass(frozen=True)
class Mixture:
    """How prior and answer are weighed: `s / temperature + beta G / |y|^alpha`."""

    temperature: float
    alpha: float = 0.0
    beta: float = 1.0


@dataclass(frozen=True)
class AuditScores:
    """What is known of Q questions.

    there_QW: bool, whether the column has a passage. prior_QW, answer_QW: float64, s and G. nothing_Q: G_0. lengths_Q:
    |y|, int. gold_QW: bool, the right passages. others: further scores by name, (Q, W). clusters: (Q,) documents; None:
    every question stands alone. temperature: the retriever's own.
    """

    there_QW: np.ndarray
    prior_QW: np.ndarray
    answer_QW: np.ndarray
    nothing_Q: np.ndarray
    lengths_Q: np.ndarray
    gold_QW: np.ndarray
    temperature: float
    others: dict[str, np.ndarray] = field(default_factory=dict)
    clusters: Sequence[Hashable] | None = None

    @property
    def K(self) -> int:
        return self.there_QW.shape[1] - 1

    @property
    def gain_QW(self) -> np.ndarray:
        """u, in nats a token."""
        return (self.answer_QW - self.nothing_Q[:, None]) / self.lengths_Q[:, None]

    def answers(self, alpha: float) -> np.ndarray:
        """(Q, W): G / |y|^alpha."""
        return np.asarray(Temper(alpha)(self.answer_QW, self.lengths_Q[:, None]))

    def teacher(self, temper: Mixture) -> np.ndarray:
        """(Q, W): log p(z|x) + beta G / |y|^alpha, up to a constant of the question."""
        return self.prior_QW / temper.temperature + temper.beta * self.answers(temper.alpha)


def found(scores: AuditScores, k: int) -> np.ndarray:
    """(Q, W) bool: the first k that were found."""
    return scores.there_QW & (np.arange(scores.K + 1) < min(k, scores.K))


def gold_among(scores: AuditScores, k: int) -> np.ndarray:
    """The same with a right passage in each row: where the first k have none, the nearest one takes the place of the
    last of them. Rows without any right passage stay as they are."""
    mask_QW = found(scores, k)
    for row in np.flatnonzero(~(mask_QW & scores.gold_QW).any(axis=1)):
        right = np.flatnonzero(scores.gold_QW[row] & scores.there_QW[row])
        if len(right):
            mask_QW[row, np.flatnonzero(mask_QW[row])[k - 1 :]] = False
            mask_QW[row, right[0]] = True
    return mask_QW


def gold_left_out(scores: AuditScores) -> np.ndarray:
    """The K that were found without those that are right."""
    return found(scores, scores.K) & ~scores.gold_QW


def highest(values_QW: np.ndarray, mask_QW: np.ndarray) -> np.ndarray:
    """(Q,) the highest value in the mask; NaN where it is empty."""
    top_Q = np.where(mask_QW, values_QW, -np.inf).max(axis=1)
    return np.where(mask_QW.any(axis=1), top_Q, np.nan)


def gold_first(values_QW: np.ndarray, mask_QW: np.ndarray, gold_QW: np.ndarray) -> np.ndarray:
    """(Q,) 1 where a right passage of the mask stands above all wrong ones, 0 where one stands above it or beside it;
    NaN where the mask has no right or no wrong passage."""
    right_Q, wrong_Q = highest(values_QW, mask_QW & gold_QW), highest(values_QW, mask_QW & ~gold_QW)
    tolerance_Q = TIE * np.where(mask_QW, np.abs(values_QW), 0.0).max(axis=1)
    return np.where(np.isnan(right_Q + wrong_Q), np.nan, right_Q > wrong_Q + tolerance_Q)


def area(values_QW: np.ndarray, mask_QW: np.ndarray, gold_QW: np.ndarray) -> np.ndarray:
    """(Q,) AUC: how many of the pairs of a right and a wrong passage are in order, ties for half; NaN without any."""
    result = np.full(len(values_QW), np.nan)
    for row, (values, mask, gold) in enumerate(zip(values_QW, mask_QW, gold_QW, strict=True)):
        right, wrong = values[mask & gold], values[mask & ~gold]
        if len(right) and len(wrong):
            above = np.subtract.outer(right, wrong)
            result[row] = ((above > 0) + 0.5 * (above == 0)).mean()
    return result


def log_mass(values_QW: np.ndarray, mask_QW: np.ndarray, gold_QW: np.ndarray) -> np.ndarray:
    """(Q,) log of the probability that the softmax over the mask gives to right passages; NaN where it has none."""
    both = [np.where(m, values_QW, -np.inf) for m in (mask_QW & gold_QW, mask_QW)]
    right_Q, all_Q = (np.logaddexp.reduce(values, axis=1) for values in both)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(right_Q), right_Q - all_Q, np.nan)
