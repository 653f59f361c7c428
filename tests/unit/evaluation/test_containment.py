"""Does a passage contain an answer, by the words that SQuAD's normalisation leaves."""

from __future__ import annotations

import numpy as np
import pytest
from torchmetrics.functional.text.squad import _normalize_text

from ds_rag.evaluation.containment import answer_in_top, answers_in_passages, contains, framed, squad_words


@pytest.mark.parametrize(
    ("passage", "answer", "wanted"),
    [
        ("It was the Tavern, of Zor.", "a tavern", True),
        ("the taverns of zor", "tavern", False),  # whole words
        ("of the zor tavern", "tavern of zor", False),  # in this order
        ("tavern of the zor", "tavern of zor", True),  # articles do not count
        ("in 1,500 cases", "1500", True),
        ("anything at all", "the", False),  # nothing is left of the answer
        ("什么是北京市的人口", "北京", True),  # no blanks between words
        ("la tavern\u00a0verte", "tavern verte", True),
    ],
)
def test_whole_words_in_their_order(passage: str, answer: str, wanted: bool) -> None:
    assert contains(framed(passage), framed(answer)) is wanted


@pytest.mark.parametrize(
    "text", ["The  cat, a dog & an eel!", "A.B. the-other", "x\u2013a\u2013y", "", "the", "1,5 % of a"]
)
def test_the_words_are_those_of_squad(text: str) -> None:
    assert " ".join(squad_words(text)) == _normalize_text(text)


def test_the_first_k_passages_of_each_question() -> None:
    texts = ["kelp grows", "ann leads zor", "bob leads via"]
    found = answers_in_passages(texts, [[0, 1], [2, 0], [0], [1]], [["Ann"], ["ann", "the Bob"], ["the"], ["eve"]])
    assert found == [[False, True], [True, False], None, [False]]
    values = answer_in_top(found, (1, 2))
    np.testing.assert_array_equal(values["answer_in_top@1"], [0, 1, np.nan, 0])
    np.testing.assert_array_equal(values["answer_in_top@2"], [1, 1, np.nan, 0])
