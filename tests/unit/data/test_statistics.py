from __future__ import annotations

import pytest

from ds_rag.data.formats import Passage, Row
from ds_rag.data.statistics import labels, normalised, overlap, per_row, repeated_queries, repeated_texts, spread


def row(query: str, answers=("a",), positives=(), passages=(), negatives=()) -> Row:
    return Row(query, query, tuple(answers), tuple(positives), tuple(passages), tuple(negatives), "file:1")


ROWS = [
    row("One ?", ("1",), ("p", "q")),
    row("one  ?", ("2",), (), ("c", "d", "e"), ("n",)),
    row("two", ("1", "2"), ("p",)),
    row("two", ("2", "1")),
    row("three", ()),
]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([], None),
        ([3], (3, 3, 3, 3)),
        ([4, 1], (1, 4, 4, 4)),
        ([1, 2, 3], (1, 2, 3, 3)),
        (list(range(1, 101)), (1, 51, 96, 100)),
    ],
)
def test_spread_by_hand(values, wanted):
    assert spread(values) == ({} if wanted is None else dict(zip(("min", "median", "95%", "max"), wanted, strict=True)))


def test_labels_by_hand():
    assert labels(ROWS) == {
        "with labelled positives": 2,
        "without labelled positives": 3,
        "with unlabelled candidates": 1,
        "with labelled negatives": 1,
        "without any passage": 2,
        "without an answer": 1,
        "with several answers": 2,
        "with a teacher's scores": 0,
    }
    found = per_row(ROWS)
    assert [found[name]["max"] for name in found] == [2, 4, 2]
    assert found["candidates, all"]["min"] == 0


def test_repetitions_mind_neither_case_nor_blanks():
    assert normalised("  A\tb  C ") == normalised("a B c")
    assert repeated_queries(ROWS) == {"repeated queries": 2, "queries with differing answers": 1}
    corpus = [Passage(str(n), text) for n, text in enumerate(("a b", "a b", "A  b", "c"))]
    assert repeated_texts(corpus) == {"repeated texts": 1, "repeated but for case and blanks": 2}


def test_overlap_by_hand():
    held = [row("ONE ?", positives=("P", "new")), row("new ?", positives=("n",)), row("two", positives=("other",))]
    assert overlap(ROWS, held) == {
        "queries": 2,
        "of queries": 3,
        "labelled passages": 2,
        "of labelled passages": 4,
    }
    assert overlap([], held)["queries"] == 0
