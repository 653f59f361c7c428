"""Rows whose labelled passage a corpus does not have, against cases counted by hand."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ds_rag.data.lost_labels import Lost, lost_labels, lost_note, rows_by_id
from ds_rag.data.records import Passage, Row
from ds_rag.runtime.errors import UserError


def row(id_: str, *positives: str, **more: tuple[Passage, ...]) -> Row:
    return Row(id_, f"query {id_}", ("a",), positives, ("not in the corpus",), (), f"rows:{id_}", **more)  # type: ignore[arg-type]


CORPUS = [
    Passage("p1", "the tavern of zor is flint"),
    Passage("p2", "Forges the forge of via is ebony", 7),
    Passage("p3", "kelp grows in pool nine"),
]


def test_labels_by_text() -> None:
    rows = [
        row("there", "the tavern of zor is flint"),
        row("without its title", "the forge of via is ebony"),
        row("other blanks and case", "KELP  grows in pool nine"),
        row("no label"),
        row("gone", "the inn of zor is flint"),
        row("one of two", "kelp grows in pool nine", "kelp grows in pool ten"),
        row("by the text, not the id", "p1"),
    ]
    assert lost_labels(rows, CORPUS) == [
        Lost("gone", "query gone", ("the inn of zor is flint",), True),
        Lost("one of two", "query one of two", ("kelp grows in pool ten",), False),
        Lost("by the text, not the id", "query by the text, not the id", ("p1",), True),
    ]
    assert [lost.id for lost in lost_labels(rows, CORPUS[1:])] == ["there", *[x.id for x in lost_labels(rows, CORPUS)]]
    assert len(lost_labels(rows, [])) == 6, "all that have a label"


def test_labels_by_id() -> None:
    """Objects as `positive_ids` and its other names give them; numbers are ids too."""
    rows = [
        {"id": "a", "query": "q a", "positive_ids": ["p1", "p9", "p9"]},
        {"id": "b", "query": "q b", "positive_ids": "p3"},
        {"id": "c", "query": "q c", "passage_id": 7},
        {"id": "d", "query": "q d", "positive_id": None},
        {"id": "e", "query": "q e"},
    ]
    assert lost_labels(rows, CORPUS) == [Lost("a", "q a", ("p9",), False), Lost("c", "q c", ("7",), True)]
    assert lost_labels(rows, [*CORPUS, Passage("7", "x"), Passage("p9", "y")]) == []


def test_rows_by_id_are_read_as_they_are(tmp_path: Path) -> None:
    lines = ['{"id": "a", "positive_ids": ["p1"]}', '{"id": "b", "positive": "a text"}', "no JSON", "[1]"]
    text = "\n".join([*lines, '{"_id": "c", "question": "q c", "passage_id": 7}'])
    (tmp_path / "rows.jsonl").write_text(text)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as stream:
        stream.write(text)
    (tmp_path / "rows.csv").write_text("id,question,passage_id\na,q a,p1\nc,q c,7\n")
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.csv"):
        found = rows_by_id(tmp_path / name, "--train_data")
        assert lost_labels(found, CORPUS) == [Lost("c", "q c", ("7",), True)] and len(found) == 2, name
    with pytest.raises(UserError, match="does not exist"):
        rows_by_id(tmp_path / "other.csv", "--train_data")


def test_the_notice_counts_and_names_the_first() -> None:
    lost = [Lost(f"r{n}", "q" * 50 if n == 0 else f"q{n}", ("x",), n != 1) for n in range(5)]
    said = lost_note(lost, 9)
    assert said.startswith("5 of 9 labelled rows name a passage that is not in the corpus, 4 of them without any label")
    assert said.endswith(f": r0 ({'q' * 40}...), r1 (q1), r2 (q2) and 2 more")
    assert lost_note(lost[2:3], 9, "; left out").endswith("not in the corpus: r2 (q2); left out")
