"""What a search found for each question, and which of it the generator reads: in evaluations and in `ds-rag ask`.

Shape legend: Q questions, K passages that were found for each, best first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ds_rag.evaluation.answer_rows import Question
from ds_rag.evaluation.posteriors import log_softmax

ONE = [0.0]  # log-probability of a single passage


@dataclass(frozen=True)
class Ranked:
    """What a search found: (Q, K) scores and passage numbers, best first; -1: fewer were found. temperature: of the
    scores, in the prior."""

    scores_QK: np.ndarray
    numbers_QK: np.ndarray
    temperature: float

    def question(self, row: int, begin: int, end: int, reference: str | None = None) -> Question:
        """A row's passages from place `begin` to before place `end`, with their prior over these alone."""
        numbers = self.numbers_QK[row, begin:end]
        scores = self.scores_QK[row, begin:end].astype(np.float64)
        log_prior = log_softmax(scores[numbers >= 0] / self.temperature) if (numbers >= 0).any() else ONE
        return Question(row, numbers[numbers >= 0].tolist(), log_prior, reference)
