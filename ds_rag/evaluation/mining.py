"""What of the passages that were found for a row becomes a hard negative.

Shape legend: D passages examined for a row (of a vector: its dimensions), P labelled positives of the row, N passages
of the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ds_rag.data.dataset import Example, RagData
from ds_rag.data.formats import Row
from ds_rag.data.matching import overlaps
from ds_rag.evaluation.lexical_sum import WeightedWords
from ds_rag.index.exact import best
from ds_rag.index.lexical import best_of
from ds_rag.index.vector_parts import Vectors

Posterior = Callable[[Example, Sequence[int], np.ndarray], np.ndarray]  # (row, D numbers, D scores) -> p(z|x,y) (D,)


@dataclass(frozen=True)
class Limits:
    """Limits for a negative; None: no limit. Scores are inner products, not divided by the temperature."""

    margin: float  # highest score as a fraction of the positive's; inf: any score
    absolute_margin: float | None = None  # least distance below the positive's score
    max_score: float | None = None
    posterior: float | None = None  # highest p(z|x,y)


def exceeded_limits(
    scores_D: np.ndarray, positive_scores_P: np.ndarray, posterior_D: np.ndarray | None, limits: Limits
) -> list[str]:
    """For each passage the first limit that it exceeds; "" if it exceeds none.

    Margins are relative to the lowest score of a positive, so that they hold for every (query, positive) pair. If that
    score is negative, the allowed score still lies below it. Without positives the margins do not apply.
    """
    least = float(positive_scores_P.min()) if len(positive_scores_P) else np.inf
    relative = least - (1 - limits.margin) * abs(least) if np.isfinite([least, limits.margin]).all() else np.inf
    absolute = least - (limits.absolute_margin or 0.0) if limits.absolute_margin is not None else np.inf
    highest = np.inf if limits.max_score is None else limits.max_score
    likely_D = np.zeros(len(scores_D)) if posterior_D is None or limits.posterior is None else posterior_D
    tests = {
        "margin": scores_D > relative,
        "absolute_margin": scores_D > absolute,
        "max_score": scores_D > highest,
        "posterior": likely_D > (limits.posterior or 0.0),
    }
    return np.select(list(tests.values()), list(tests), default="").tolist()


def examined(found: Sequence[int], row: Example) -> list[int]:
    """What was found for a row, then its own passages, which are in its posterior too."""
    return list(dict.fromkeys([*found, *row.own]))


class Miner:
    """Mines row by row, and counts what was found and dropped."""

    def __init__(
        self,
        table: RagData,
        vectors_ND: Vectors,
        limits: Limits,
        negatives: int,
        posterior: Posterior | None = None,
        words: WeightedWords | None = None,
    ):
        self.table, self.vectors_ND, self.limits, self.words = table, vectors_ND, limits, words
        self.negatives, self.posterior = negatives, posterior
        self.counts: Counter[str] = Counter()

    def mine(self, row: Row, example: Example, query_D: np.ndarray, found: Sequence[int]) -> dict[str, Any] | None:
        """The row as an object of the new file; None for a row without any positive or candidate.

        found: passage numbers, best first. A row without labelled positives is mined by the posterior alone: passages
        above its limit, and always the likeliest one, become unlabelled candidates. Without a posterior the row is not
        changed. Passages are written as the corpus has them, with its titles, so that each stays one passage.
        """
        texts = self.table.texts
        self.counts["rows"] += 1
        self.counts["labelled_rows"] += bool(example.positives)
        passages = [texts[n] for n in (*example.listed, *example.others) if n not in example.negatives]
        mined: list[int] = []
        if example.positives or self.posterior:
            found = self.with_words(example.query, query_D, found)
            reasons = self.judge(example, query_D, found)
            self.counts.update(f"dropped_{reason}" for reason in reasons.values() if reason)
            mined = [n for n, reason in reasons.items() if not reason][: self.negatives]
            if not example.positives:
                passages += [texts[n] for n, reason in reasons.items() if reason == "posterior"]
        else:
            self.counts["rows_as_they_were"] += 1
        self.counts["mined"] += len(mined)
        self.counts["rows_with_fewer"] += len(mined) < self.negatives
        if not row.positives and not passages:
            self.counts["rows_left_out"] += 1
            return None
        negatives = dict.fromkeys(texts[n] for n in (*example.negatives, *mined))
        written = {
            "id": row.id,
            "query": row.query,
            "answers": list(row.answers),
            "positives": [texts[n] for n in example.positives],
            "passages": [text for text in dict.fromkeys(passages) if text not in negatives],
            "negatives": list(negatives),
            **row.origin._asdict(),
        }
        return {name: value for name, value in written.items() if value}

    def scores(self, query: str, query_D: np.ndarray, numbers: list[int]) -> np.ndarray:
        """The retriever's scores of passages, BM25 by its weight included, not divided by the temperature."""
        inner = self.vectors_ND[numbers] @ query_D
        return inner if self.words is None else inner + self.words(query)[numbers]

    def with_words(self, query: str, query_D: np.ndarray, found: Sequence[int]) -> list[int]:
        """As many passages, of those found and of BM25's first, by the sum of both scores where there is one."""
        if self.words is None:
            return list(found)
        b_N = self.words(query)[: self.table.corpus_size]
        numbers = np.union1d(found, best_of(b_N, min(len(found), len(b_N)))[1]).astype(np.int64)
        return best(self.scores(query, query_D, numbers.tolist()), numbers, len(found))[1].tolist()

    def judge(self, example: Example, query_D: np.ndarray, found: Sequence[int]) -> dict[int, str]:
        """Passage number -> why it is not a new negative ("" if it is one), in the order of `found`."""
        self.counts["looked_at"] += len(found)
        read = examined(found, example)
        scores = self.scores(example.query, query_D, read)
        positive_scores_P = self.scores(example.query, query_D, list(example.positives))
        posterior = self.posterior(example, read, scores) if self.posterior else None
        reasons = dict(zip(read, exceeded_limits(scores, positive_scores_P, posterior, self.limits), strict=True))
        if posterior is not None and not example.positives:
            reasons[read[int(posterior.argmax())]] = "posterior"
        known = [self.table.texts[n] for n in example.positives + example.also]
        for n in found:
            if any(overlaps(self.table.texts[n], text) for text in known):
                reasons[n] = "known_positive"
            elif n in example.negatives:
                reasons[n] = "known_negative"
        return {n: reasons[n] for n in found}
