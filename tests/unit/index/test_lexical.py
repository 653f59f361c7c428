"""BM25 against its formula written out, and its words."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ds_rag.index.lexical import K1, B, LexicalIndex, best_of, words

TEXTS = [
    "Vitamin C keeps scurvy away",
    "Vitamin D comes from the sun, the sun, and the sun",
    "kelp grows in pool nine",
    "the old mill is closed",
    "kelp kelp kelp",
]


def by_hand(texts: list[list[str]], query: list[str]) -> list[float]:
    """Lucene's BM25, word by word."""
    N, mean = len(texts), sum(map(len, texts)) / len(texts)
    found = []
    for text in texts:
        score = 0.0
        for word in query:
            n, tf = sum(word in t for t in texts), text.count(word)
            if n:
                score += math.log(1 + (N - n + 0.5) / (n + 0.5)) * tf / (tf + K1 * (1 - B + B * len(text) / mean))
        found.append(score)
    return found


@pytest.mark.parametrize("query", ["vitamin C", "the sun", "kelp in the mill", "kelp kelp", "zebra"])
def test_scores_are_those_of_the_formula(query):
    listed = [t.lower().replace(",", "").split() for t in TEXTS]
    found = LexicalIndex(TEXTS).scores(query)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(listed, query.lower().split()), rtol=1e-5)


def test_search_ranks_by_score_then_number():
    index = LexicalIndex([*TEXTS, *TEXTS])
    scores, numbers = index.search(["kelp", "zebra"], 4)
    assert numbers.tolist() == [[4, 9, 2, 7], [0, 1, 2, 3]]  # repeated passages tie; an unknown word ties all
    assert scores[0, 0] == scores[0, 1] > scores[0, 2] == scores[0, 3] > 0 and not scores[1].any()
    every = index.scores("kelp")
    assert scores[0].tolist() == every[numbers[0]].tolist()
    assert index.search(["kelp"], 99)[1].shape == (1, 10)


def test_a_word_of_one_letter_tells_passages_apart():
    scores = LexicalIndex(TEXTS).scores("vitamin d")
    assert scores.argmax() == 1
    assert LexicalIndex(TEXTS).scores("vitamin c").argmax() == 0


def test_words():
    assert words(["The X-ray of 3 Ångström, naïve_x!"]) == [["the", "x", "ray", "of", "3", "ångström", "naïve_x"]]
    assert words(["東京は2つ"]) == [["東", "京", "は", "2", "つ"]]  # no blanks: each character
    assert words(["서울 타워", "", "?!"]) == [["서울", "타워"], [], []]


def test_nothing_to_find():
    for texts in (["?", "!"], ["", ""]):
        scores, numbers = LexicalIndex(texts).search(["kelp", ""], 5)
        assert not scores.any() and numbers.tolist() == [[0, 1], [0, 1]]
    assert LexicalIndex(TEXTS).search([], 3)[1].shape == (0, 3)


def test_the_best_of_many_ties():
    scores = np.array([1, 3, 2, 3, 3, 2], np.float32)
    for k in range(7):
        assert best_of(scores, k)[1].tolist() == [1, 3, 4, 2, 5, 0][:k]
