"""Does a passage contain an answer? A proxy for relevance where no passage is labelled.

It errs both ways: a passage may say the words about something else, and may say the answer in other words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ds_rag.evaluation.metrics import plain_words

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_BLANKS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


def squad_words(text: str) -> list[str]:
    """The words that SQuAD's normalisation leaves: lower case, without ASCII punctuation, articles and extra blanks."""
    return ARTICLES.sub(" ", " ".join(plain_words(text))).split()


def framed(text: str) -> str:
    """The normalised words between blanks, so that a part of a word is not found as one; "" where nothing is left."""
    words = squad_words(text)
    return f" {' '.join(words)} " if words else ""


def contains(passage: str, answer: str) -> bool:
    """passage, answer: as `framed` gives them. An answer without words is nowhere; one in a script that is written
    without blanks (Chinese, Thai ...) need not stand alone."""
    if NO_BLANKS.search(answer):
        return answer.strip() in passage
    return bool(answer) and answer in passage


def answers_in_passages(
    texts: Sequence[str], passages: Sequence[Sequence[int]], answers: Sequence[Sequence[str]]
) -> list[list[bool] | None]:
    """For each question, whether each of its passages contains one of its answers, normalised and as whole words.

    texts: of all passages. passages: numbers of each question's, best first. answers: of each question. None for a
    question without an answer that the normalisation leaves a word of: nothing can be said.
    """
    known: dict[int, str] = {}
    found: list[list[bool] | None] = []
    for numbers, given in zip(passages, answers, strict=True):
        wanted = [text for text in map(framed, given) if text]
        for n in numbers if wanted else ():
            if n not in known:
                known[n] = framed(texts[n])
        found.append([any(contains(known[n], w) for w in wanted) for n in numbers] if wanted else None)
    return found


def answer_in_top(found: Sequence[list[bool] | None], ks: Sequence[int]) -> dict[str, np.ndarray]:
    """answer_in_top@k, (Q,) float64: 1 where one of the first k passages contains an answer; NaN where nothing can be
    said. found: as `answers_in_passages` gives it."""
    return {
        f"answer_in_top@{k}": np.array([np.nan if row is None else float(any(row[:k])) for row in found]) for k in ks
    }
