"""The controls, with a generator that copies the words of its context: each differs from the others in a count made by
hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_evaluator import Chosen, numbers

from ds_rag.config import EvaluationConfig
from ds_rag.data.dataset import Example, RagData
from ds_rag.data.token_tables import EvalTokens
from ds_rag.evaluation import answer_rows, controls
from ds_rag.evaluation.controls import CONTROLS, random_passage, rows_of_controls
from ds_rag.evaluation.decoding import Answer
from ds_rag.evaluation.evaluator import Evaluation, Evaluator

WORDS = [
    "ann",
    "bob",
    "cid",
    "dot",
    "eve",
    "fay",
    "gus",
    "hal",
]  # passage n is "word n", and a question's answer a word


class Copier:
    """Stands for `Answerer`: answers with the first word of its first passage; closed book it says "hal"."""

    in_step = False

    def __init__(self, *args: Any):
        pass

    def answer(self, queries: Any, passages: Any, priors: Any) -> list[Answer]:
        return [Answer(WORDS[row[0][0]] if len(row[0]) else "hal", 0.0) for row in passages]

    def score(self, queries: Any, passages: Any, targets: Any) -> list[np.ndarray]:
        return [np.zeros(len(row)) for row in passages]


def measured(rows: list[Example], order: list[list[int]]) -> tuple[Evaluator, Evaluation]:
    """order: the passages of each question, best first."""
    N = len(WORDS)
    data = RagData([f"{word} leads" for word in WORDS], [f"p{n}" for n in range(N)], N, [], rows)
    fake: Any = SimpleNamespace(encode=lambda name, texts, length: [[1]] * len(texts))
    tokens = EvalTokens(numbers(N), numbers(len(rows)), numbers(N), numbers(len(rows)))
    settings = EvaluationConfig(top_k=2, per_device_eval_batch_size=3)
    retriever: Any = Chosen(np.eye(N), np.eye(N))
    evaluator = Evaluator(retriever, fake, fake, data, tokens, settings)
    scores = np.tile(np.arange(len(order[0]), 0, -1.0), (len(rows), 1)).astype(np.float32)
    return evaluator, evaluator.judge(scores, np.array(order), 1.0)


@pytest.fixture(autouse=True)
def copier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_rows, "Answerer", Copier)


ROWS = [
    Example("q", ("hal",), (0,), ()),  # known without any passage
    Example("q", ("bob",), (1,), ()),  # gold is right, retrieved second
    Example("q", ("bob",), (2,), ()),  # retrieved first, though not labelled
    Example("q", ("dot",), (3,), ()),  # gold is right, retrieved first
    Example(
        "q", ("eve",), (4,), ()
    ),  # gold is right, retrieved third: beyond the first two, within the two after the first
    Example("q", ("ann",), (), ()),  # not labelled: in no control
]
ORDER = [[5, 6, 7], [2, 1, 0], [1, 2, 3], [3, 0, 1], [5, 0, 4], [0, 1, 2]]
RANDOM = [7, 5, 5, 5, 4]


def test_each_control_is_told_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls, "random_passage", lambda data, row: [RANDOM[row]])
    evaluator, result = measured(ROWS, ORDER)
    found = evaluator.controls(result)
    assert tuple(found) == CONTROLS
    exact = {name: round(5 * values["exact_match"]) for name, values in found.items()}
    assert exact == {
        "closed_book": 1,  # row 0
        "random_passage": 2,  # rows 0 and 4, by the passages chosen above
        "retrieved": 2,  # rows 2 and 3
        "gold_passage": 3,  # rows 1, 3 and 4
        "retrieved_without_first": 1,  # row 1
    }
    inside = {name: round(5 * values["answer_in_context"]) for name, values in found.items()}
    # Of rows 1, 2, 3 the first two passages, of rows 0, 1, 4 the two after the first.
    assert inside == {
        "closed_book": 0,
        "random_passage": 2,
        "retrieved": 3,
        "gold_passage": 3,
        "retrieved_without_first": 3,
    }
    assert found["retrieved"]["f1_in_context"] == pytest.approx(2 / 3)
    assert found["retrieved"]["f1_not_in_context"] == 0.0
    assert "f1_in_context" not in found["closed_book"] and found["closed_book"]["f1_not_in_context"] == 0.2
    table = result.questions
    assert table is not None
    np.testing.assert_array_equal(table.metrics["retrieved/f1"], [0, 0, 1, 1, 0, np.nan])
    np.testing.assert_array_equal(table.metrics["gold_passage/f1"], [0, 1, 0, 1, 1, np.nan])


def test_without_labels_all_rows_with_answers_and_no_gold() -> None:
    evaluator, result = measured([Example("q", ("ann",), (), ()), Example("q", (), (), ())], [[0, 1, 2]] * 2)
    assert rows_of_controls(evaluator.data) == [0]
    assert set(evaluator.controls(result)) == set(CONTROLS) - {"gold_passage"}


def test_a_random_passage_is_drawn_alike_every_time_and_never_a_labelled_one() -> None:
    rows = [Example("q", ("x",), tuple(range(6)), ())] * 40
    data = RagData(WORDS, WORDS, len(WORDS), [], rows)
    drawn = [random_passage(data, n) for n in range(40)]
    assert {n for (n,) in drawn} == {6, 7} and drawn == [random_passage(data, n) for n in range(40)]
    assert random_passage(RagData(WORDS[:6], WORDS[:6], 6, [], rows), 0) == []
