"""Scores of passages in rows, as other programs write them."""

from __future__ import annotations

from typing import Any

import pytest

from ds_rag.config import build
from ds_rag.data.bad_rows import Reading
from ds_rag.data.dataset import build_table, read_data
from ds_rag.data.formats import passages_of, read_rows
from ds_rag.data.in_memory_rows import rows_from
from ds_rag.runtime.errors import UserError

ABC = {"a": 3.5, "b": 2.0, "c": 1.0}
WRITTEN: list[tuple[str, dict[str, Any], dict[str, float]]] = [
    ("of candidates", {"passages": ["a", "b"], "teacher_scores": [1.5, -2]}, {"a": 1.5, "b": -2.0}),
    ("by another name", {"passages": ["a", "b"], "scores": [1.5, -2]}, {"a": 1.5, "b": -2.0}),
    ("LLM-Embedder", {"pos": ["a"], "neg": ["b", "c"], "teacher_scores": [3, 2, 1]}, {"a": 3, "b": 2, "c": 1}),
    ("FlagEmbedding", {"pos": ["a"], "pos_scores": [3], "neg": ["b", "c"], "neg_scores": [2, 1]}, dict(a=3, b=2, c=1)),
    ("numbered columns", {"positive": "a", "negative_1": "b", "negative_2": "c", "label": [3.5, 2, 1]}, ABC),
    ("gold among them", {"positive": "b", "passages": ["a", "b"], "teacher_scores": [1, 2]}, {"a": 1, "b": 2}),
    ("of all", {"positive": "p", "passages": ["a", "b"], "scores": [9, 1, 2]}, {"p": 9, "a": 1, "b": 2}),
    ("repeated alike", {"pos": ["a"], "neg": ["b", "b"], "scores": [3, 2, 2]}, {"a": 3, "b": 2}),
    ("written as text", {"passages": ["a", "b"], "scores": "[1.5, -2.0]"}, {"a": 1.5, "b": -2.0}),
    ("with labels", {"passages": ["a", "b"], "label": [0, 1], "scores": [-1.5, 2]}, {"a": -1.5, "b": 2.0}),
    ("one name counts", {"passages": ["a"], "scores": ["x"], "teacher_scores": [1]}, {"a": 1.0}),
    ("one passage", {"passages": "a", "teacher_scores": 0.5}, {"a": 0.5}),
]  # fmt: skip
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"passages": ["a", "b"], "teacher_scores": [1]}, "'teacher_scores' has 1 numbers, expected 2: one for each"),
    ({"pos": ["a"], "neg": ["b"], "teacher_scores": [1, 2, 3]}, "has 3 numbers, expected 2"),
    ({"pos": ["a"], "neg": ["b"], "pos_scores": [1], "neg_scores": [1, 2]}, "'neg_scores' has 2 numbers for 1 neg"),
    ({"passages": ["a", "b"], "scores": [1, float("nan")]}, r"'scores\[1\]' is float nan, expected a finite number"),
    ({"passages": ["a", "b"], "scores": [float("-inf"), 1]}, r"'scores\[0\]' is float -inf"),
    ({"passages": ["a", "b"], "scores": [1, "2"]}, r"'scores\[1\]' is str '2', expected a finite number"),
    ({"passages": ["a", "b"], "scores": [1, True]}, r"'scores\[1\]' is bool True"),
    ({"passages": ["a", "b"], "scores": [1, None]}, r"'scores\[1\]' is NoneType None"),
    ({"passages": ["a", "b"], "scores": "[1. 2.]"}, r"expected a list of numbers such as \[1.5, -0.2\]"),
    ({"passages": ["a", "b"], "scores": None}, "'scores' is empty, expected a score for each passage"),
    ({"passages": ["a", "a"], "scores": [1, 2]}, "a passage has the scores 1 and 2"),
]  # fmt: skip


def read(files: Any, *rows: dict[str, Any], scores: bool | None = True) -> tuple[list[Any], Reading]:
    reading = Reading(scores=scores)
    path = files.jsonl("r.jsonl", [{"query": f"q{n}"} | row for n, row in enumerate(rows)])
    return read_rows(path, need_answers=False, reading=reading), reading


@pytest.mark.parametrize(("row", "expected"), [case[1:] for case in WRITTEN], ids=[case[0] for case in WRITTEN])
def test_each_passage_has_its_number(row: dict[str, Any], expected: dict[str, float], files: Any) -> None:
    ((found,), _) = read(files, row)
    assert found.scores == expected
    assert rows_from([{"query": "q0"} | row], True, False, True)[0].scores == expected
    table = build_table(passages_of([found]), [found], [])
    assert {table.texts[n]: score for n, score in table.train[0].scores.items()} == expected
    assert set(table.train[0].scores) <= set(table.train[0].own)


@pytest.mark.parametrize(("row", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_does_not_fit_is_named_with_its_row(row: dict[str, Any], said: str, files: Any) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read(files, row)
    assert "1 bad place" in str(caught.value) and "r.jsonl:1: " in str(caught.value)


def test_rows_without_a_column_for_them_are_refused_once(files: Any) -> None:
    with pytest.raises(UserError, match="no column for the scores") as caught:
        read(files, {"passages": ["a"], "teacher_score": [1]})
    assert "did you mean 'teacher_score'? " in str(caught.value) and "--scores_column" in str(caught.value)


def test_where_nobody_asks_for_them_they_are_no_fault(files: Any) -> None:
    """A column of that name may hold anything then, as before; `check` reads what fits and says the rest."""
    rows = {"passages": ["a"], "teacher_scores": [1]}, {"passages": ["a"], "teacher_scores": ["x"]}
    found, reading = read(files, *rows, scores=False)
    assert [row.scores for row in found] == [{}, {}] and "--teacher scores trains on them" in reading.notices[0]
    found, reading = read(files, *rows, scores=None)
    assert [row.scores for row in found] == [{"a": 1.0}, {}]
    (notice,) = reading.notices
    assert "1 rows have no scores that --teacher scores could use, the first: " in notice and "r.jsonl:2: " in notice


def test_a_list_of_whole_numbers_stays_labels(files: Any) -> None:
    ((row,), _) = read(files, {"passages": ["a", "b"], "label": [1, 0]}, scores=None)
    assert row.positives == ("a",) and not row.scores


def test_rows_that_differ_in_their_scores_alone_are_two(files: Any) -> None:
    with pytest.raises(UserError, match="id '1' is already that of another row"):
        read(files, *({"id": 1, "query": "q", "passages": ["a"], "scores": [n]} for n in (1, 2)))


def test_folds_take_passages_with_their_scores_and_labels_may_be_left_out(files: Any) -> None:
    """A row's document is its own; the passages of held-out documents have no scores in training."""
    texts = {name: [f"{name} {n}" for n in range(2)] for name in "abcd"}
    rows = [
        {"query": name, "document": name, "pos": own[:1], "neg": [own[1], "a 2"], "scores": [3, 2, 1]}
        for name, own in texts.items()
    ]
    texts["a"].append("a 2")
    corpus = [{"text": text, "document": name} for name, own in texts.items() for text in own]
    flags = {"train_data": str(files.jsonl("r.jsonl", rows)), "corpus": str(files.jsonl("c.jsonl", corpus))}
    held = {"folds": 4, "fold": 0}
    for labels in (True, False):
        found = read_data(
            build(flags | held | {"train_labels": labels}).data, False, need_answers=False, need_scores=True
        )
        kept = [{found.texts[n]: score for n, score in row.scores.items()} for row in found.train]
        assert kept == [{f"{name} 0": 3.0, f"{name} 1": 2.0} for name in "bcd"], "of document a nothing is left"
        assert all(set(row.scores) <= set(row.own) and bool(row.positives) == labels for row in found.train)
        assert found.allowed is not None and all(found.allowed[n] for row in found.train for n in row.scores)
    every = read_data(build(flags).data, False, need_answers=False, need_scores=True)
    assert [len(row.scores) for row in every.train] == [3] * 4
