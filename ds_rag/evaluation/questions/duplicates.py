"""Questions that are nearly the same as an earlier one: by their words within a document, by their vectors over all.

Of two such questions the first stays, in the order of passages and numbers. Examples of the prompt count as earlier: a
small model repeats them.

Shape legend: Q questions, D dimensions of a vector.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from ds_rag.evaluation.metrics import plain_words
from ds_rag.evaluation.questions.sieve import Question, Reasons

SHINGLE = 3  # words
SAME_WORDS = 0.5  # Jaccard index of two questions' shingles from which they are the same
BLOCK = 512  # questions compared with all earlier ones at once


def by_words(questions: Sequence[Question], documents: Sequence[Hashable], earlier: Sequence[str] = ()) -> Reasons:
    """Rejects questions whose shingles, runs of three words, are mostly those of an earlier one of the same document,
    or of one in `earlier`. documents: of each question; a question without one (None) is compared with those of its
    passage."""
    always = [(shingles(query), query) for query in earlier]
    seen: dict[Hashable, list[tuple[set[tuple[str, ...]], str]]] = defaultdict(list)
    reasons: Reasons = []
    for question, document in zip(questions, documents, strict=True):
        own, group = shingles(question.query), ("passage", question.passage) if document is None else document
        same = next((query for other, query in [*always, *seen[group]] if overlap(own, other) >= SAME_WORDS), None)
        reasons.append(None if same is None else f"words of another question: {same}")
        if same is None:
            seen[group].append((own, question.query))
    return reasons


def shingles(text: str) -> set[tuple[str, ...]]:
    """The runs of `SHINGLE` words, the beginning and the end of the text counting as words."""
    words = ["<", *plain_words(text), ">"]
    return {tuple(words[n : n + SHINGLE]) for n in range(max(1, len(words) - SHINGLE + 1))}


def overlap(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    """Jaccard index: common shingles over all shingles of both."""
    return len(one & other) / len(one | other)


def by_vectors(questions: Sequence[Question], vectors_QD: np.ndarray, above: float) -> Reasons:
    """Rejects questions whose vector has a cosine above `above` with that of an earlier one that stays."""
    lengths = np.linalg.norm(vectors_QD, axis=1, keepdims=True)
    unit_QD = (vectors_QD / np.maximum(lengths, 1e-12)).astype(np.float32)
    reasons: Reasons = [None] * len(questions)
    for start in range(0, len(questions), BLOCK):
        near = unit_QD[start : start + BLOCK] @ unit_QD[: start + BLOCK].T > above
        for row in np.flatnonzero(near.sum(axis=1) > 1).tolist():
            others = [n for n in np.flatnonzero(near[row]).tolist() if n < start + row and reasons[n] is None]
            if others:
                reasons[start + row] = f"meaning of another question: {questions[others[0]].query}"
    return reasons
