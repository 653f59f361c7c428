"""Document, title and place of rows and passages, in every format."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from ds_rag.config import DataConfig
from ds_rag.data.columns import Columns
from ds_rag.data.dataset import RagData, build_table, read_data, read_evaluation
from ds_rag.data.formats import Passage, read_corpus, read_rows
from ds_rag.data.in_memory_rows import corpus_from, rows_from
from ds_rag.data.origin import NOWHERE, Origin, PassageRecord, as_name
from ds_rag.data.records import Row
from ds_rag.runtime.errors import UserError

ROWS = [
    {"query": "one ?", "answer": "1", "positive": "text one", "document": "A", "title": "Of A", "place": "2"},
    {"query": "two ?", "answer": "2", "positive": "text two", "document": "", "title": None, "place": "  "},
]
CORPUS = [
    {"id": "p1", "title": "Head", "text": "text one", "document": "A", "place": "Intro / First"},
    {"id": "p2", "title": "", "text": "text two", "document": "B", "place": "7"},
    {"id": "p3", "title": "", "text": "text three", "document": "", "place": ""},
]


def write(path: Path, objects: list[dict]) -> Path:
    """The objects in the format that the suffix names."""
    names = list(dict.fromkeys(name for o in objects for name in o))
    if path.suffix == ".csv":
        import csv

        with path.open("w", newline="") as stream:
            table = csv.DictWriter(stream, names)
            table.writeheader()
            table.writerows(objects)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(o) + "\n" for o in objects))
    else:
        import datasets

        table = datasets.Dataset.from_list([{name: o.get(name) for name in names} for o in objects])
        table.to_parquet(path) if path.suffix == ".parquet" else table.save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet", ""])
def test_every_format_has_them(kind, tmp_path):
    rows = read_rows(write(tmp_path / f"rows{kind}", ROWS))
    assert [row.origin for row in rows] == [Origin("A", "Of A", "2"), NOWHERE]
    assert rows[1].origin is NOWHERE
    passages = read_corpus(write(tmp_path / f"corpus{kind}", CORPUS))
    assert [p.document for p in passages] == ["A", "B", None]
    assert [p.origin.place for p in passages] == ["Intro / First", "7", None]
    assert [p.text for p in passages] == ["Head text one", "text two", "text three"]  # the title's place is the text's
    data = build_table(passages, rows, [])
    assert data.passage(0) == PassageRecord(0, "p1", "Head text one", "A", "Head", "Intro / First")
    assert data.passage(1) == PassageRecord(1, "p2", "text two", "B", None, "7")
    assert data.passage(2) == PassageRecord(2, "p3", "text three", None, None, None)
    assert [data.row_document(row) for row in data.train] == ["A", "B"]  # the second by its positive


def test_a_beir_folder_has_them_in_fields_or_metadata(tmp_path):
    (tmp_path / "qrels").mkdir()
    write(
        tmp_path / "corpus.jsonl",
        [
            {"_id": "d1", "text": "one", "metadata": {"document": "A", "page": 3, "url": "u"}},
            {"_id": "d2", "text": "two", "document": "B"},
        ],
    )
    write(
        tmp_path / "queries.jsonl",
        [
            {"_id": "q1", "text": "one ?", "answers": ["1"], "metadata": {"document": "Q", "place": "end"}},
            {"_id": "q2", "text": "two ?", "answers": ["2"]},
        ],
    )
    (tmp_path / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n")
    rows, passages = read_rows(tmp_path, flag="--eval_data"), read_corpus(tmp_path)
    assert [(p.document, p.origin.place) for p in passages] == [("A", "3"), ("B", None)]
    assert [row.origin for row in rows] == [Origin("Q", None, "end"), NOWHERE]
    for corpus in (passages, []):  # without the corpus the rows still bring what it says of their positives
        data = build_table(corpus, [], rows)
        assert [data.document_of(row.positives[0]) for row in data.evaluation] == ["A", "B"]
        assert [data.row_document(row) for row in data.evaluation] == ["Q", "B"]


def test_passages_inside_rows_have_them():
    rows = rows_from(
        [
            {"query": "q", "answer": "a", "positive": {"text": "one", "document": "A", "page": 4}, "negatives": ["x"]},
            {"query": "r", "answer": "a", "passages": {"text": ["b", "c"], "document": ["B", "C"], "title": ["", ""]}},
        ],
        True,
        True,
    )
    data = build_table([], rows, [])
    assert {data.texts[n]: data.document_of(n) for n in range(4)} == {"one": "A", "x": None, "b": "B", "c": "C"}
    assert data.passage(data.texts.index("one")).place == "4"
    assert [data.row_document(row) for row in data.train] == ["A", None]  # candidates alone name no document


def test_a_pairs_document_is_its_passages():
    rows = rows_from(
        [
            {"query": "q", "answer": "a", "passage": "one", "label": 0, "document": "A"},
            {"query": "q", "answer": "a", "passage": "two", "label": 1, "document": "B"},
        ],
        True,
        True,
    )
    data = build_table([], rows, [])
    assert {data.texts[n]: data.document_of(n) for n in range(2)} == {"one": "A", "two": "B"}
    assert data.row_document(data.train[0]) == "B"


def test_the_corpus_wins_over_objects_and_objects_over_rows_whatever_their_order():
    def row(query: str, positive: object, document: str | None) -> dict:
        return {"query": query, "answer": "a", "positive": positive, "document": document}

    several = [row("a", "one", "R1"), row("b", "one", "R0"), row("c", {"text": "two", "document": "O"}, "R2")]
    several += [row("d", "three", "R9"), row("e", "three", "R3")]
    corpus = corpus_from([{"text": "one", "document": "C"}])
    for order in (several, several[::-1]):
        data = build_table(corpus, rows_from(order, True, True), [])
        named = {data.texts[n]: data.document_of(n) for n in range(3)}
        assert named == {"one": "C", "two": "O", "three": "R3"}
        assert {data.row_document(r) for r in data.train} == {"R0", "R1", "R2", "R3", "R9"}  # a row's own comes first


def test_what_is_not_there_is_not_stored():
    data = build_table(
        [Passage("a", "one")], rows_from([{"query": "q", "answer": "a", "positive": "one"}], True, True), []
    )
    assert data.origins == [] and data.leads is None
    assert data.passage(0) == PassageRecord(0, "a", "one", None, None, None)
    assert data.row_document(data.train[0]) is None and data.cluster_of(data.train[0]) is None


@pytest.mark.parametrize(
    "value,name",
    [(" A ", "A"), (3, "3"), ("", None), (None, None), (True, None), (2.5, None), ({"html": "x"}, None), (["A"], None)],
)
def test_names_are_texts_or_whole_numbers(value, name):
    assert as_name(value) == name


def test_flags_name_the_columns_in_rows_or_corpus(tmp_path):
    rows = write(
        tmp_path / "rows.jsonl", [{"query": "q", "answer": "a", "positive": "one", "trial": "T1", "head": "H"}]
    )
    corpus = write(tmp_path / "corpus.jsonl", [{"text": "one", "file": "F", "nr": 4}])
    base = {"train_data": str(rows), "eval_data": str(rows), "corpus": str(corpus)}
    config = DataConfig(**base, document_column="file", title_column="head", place_column="nr", cluster_column="trial")
    data = read_data(config, builtin=False)
    assert data.passage(0) == PassageRecord(0, "passage-1", "one", "F", "H", "4")
    assert data.row_document(data.evaluation[0]) == "F" and data.cluster_of(data.evaluation[0]) == "T1"
    assert data.cluster_of(read_data(DataConfig(**base, document_column="file"), False).evaluation[0]) == "F"
    for flag in ("document", "title", "place", "cluster"):
        with pytest.raises(UserError, match=f"--{flag}_column fil: no row"):
            read_data(DataConfig(**base, **{f"{flag}_column": "fil"}), builtin=False)
    with pytest.raises(UserError, match="--cluster_column fil"):
        read_evaluation(DataConfig(**base, cluster_column="fil"), builtin=False)


def test_of_several_such_columns_the_first_name_counts_and_none_is_an_error(tmp_path):
    row = {"query": "q", "answer": "a", "positive": "one", "article": "second", "Document": "first", "section": "s"}
    (read,) = read_rows(write(tmp_path / "rows.jsonl", [row | {"page": 3}]))
    assert read.origin == Origin("first", None, "3")
    (read,) = read_rows(write(tmp_path / "rows.jsonl", [row]), Columns(positives="article", document="section"))
    assert read.positives == ("second",) and read.origin.document == "s"


def test_a_column_of_texts_with_such_a_name_is_still_found_to_be_one(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"query": "q", "answer": "a", "document": "a text to read"}])
    with pytest.raises(UserError, match="no column for either"):
        read_rows(path)
    (row,) = read_rows(path, Columns(positives="document"))
    assert row.positives == ("a text to read",) and row.origin is NOWHERE


def test_rows_are_as_large_as_before():
    assert [f.name for f in fields(Row)][-4:] == ["origin", "cluster", "listed", "scores"] and RagData(
        [], [], 0
    ).origins == []
