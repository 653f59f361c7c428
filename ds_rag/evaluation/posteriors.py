"""What the generator makes of the retriever's ranking, once it is told the answer.

Shape legend: K passages that the generator reads for a question.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ds_rag.evaluation.answer_rows import Question, Reply


def posterior(question: Question, reply: Reply) -> list[float]:
    """p(z | x, y) of the passages that were read: the prior times the likelihood of the reference, over these alone."""
    assert reply.log_likelihood is not None
    if not len(question.passages):
        return []
    log_joint_K = np.asarray(question.log_prior, dtype=np.float64) + reply.log_likelihood
    return [float(p) for p in np.exp(log_softmax(log_joint_K))]


def agreement(questions: Sequence[Question], posteriors: Sequence[Sequence[float]]) -> dict[str, np.ndarray]:
    """prior_posterior_agreement, (Q,) float64: 1 where the best passage by the retriever is also the best once the
    answer is known. NaN where fewer than two passages are read: there is nothing to disagree about."""
    values = [
        float(int(np.argmax(q.log_prior)) == int(np.argmax(p))) if len(p) > 1 else np.nan
        for q, p in zip(questions, posteriors, strict=True)
    ]
    return {"prior_posterior_agreement": np.array(values)}


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis; float64."""
    x = x.astype(np.float64)
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
