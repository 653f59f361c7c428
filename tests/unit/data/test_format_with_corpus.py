"""A format that brings its own corpus is one file: a new one, made here, serves wherever a BEIR folder does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ds_rag.commands import cli
from ds_rag.config import DataConfig
from ds_rag.data import formats
from ds_rag.data.columns import Columns
from ds_rag.data.corpus_state import source_of
from ds_rag.data.data_settings import corpus_source, has_corpus
from ds_rag.data.dataset import read_data
from ds_rag.data.format import Format, holds
from ds_rag.data.formats import contains_corpus, read_rows
from ds_rag.data.records import Record
from ds_rag.runtime.errors import UserError

TEXTS = ["ann leads zor", "kelp grows in pool nine", "bob leads via", "never asked for"]


def read(path: Path, what: str, faults: Any) -> Iterator[Record]:
    """rows.json and texts.json, each a list of records."""
    file = path / {"rows": "rows.json", "corpus": "texts.json"}[what]
    for n, fields in enumerate(json.loads(file.read_text()), start=1):
        yield Record(fields, n, f"{file}:{n}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pair = Format("a pair of lists", holds("texts.json"), read, corpus_files=("texts.json",), fixed_columns=True)
    monkeypatch.setitem(formats.READERS, "pair", pair)
    (tmp_path / "texts.json").write_text(json.dumps([{"id": f"t{n}", "text": text} for n, text in enumerate(TEXTS)]))
    rows = [{"query": f"q{n}", "answer": "a", "positive": text} for n, text in enumerate(TEXTS[:3])]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


def test_its_texts_are_the_corpus(folder):
    data = DataConfig(train_data=str(folder), eval_data=str(folder))
    assert contains_corpus(folder, "DATA") and has_corpus(data, "--eval_data") and corpus_source(data) == str(folder)
    found = read_data(data, builtin=False)
    assert found.texts[: found.corpus_size] == TEXTS and [row.positives for row in found.evaluation] == [
        (0,),
        (1,),
        (2,),
    ]


def test_a_file_of_rows_alone_brings_none(folder):
    file = folder.with_name("rows.jsonl")
    file.write_text("".join(json.dumps({"query": "q", "answer": "a", "positive": t}) + "\n" for t in TEXTS[:3]))
    data = DataConfig(train_data=str(file), eval_data=str(file))
    assert not contains_corpus(file, "DATA") and not has_corpus(data, "--eval_data")
    assert read_data(data, builtin=False).corpus_size == 3, "the texts of the rows"


def test_only_its_corpus_file_is_watched_for_changes(folder):
    source = source_of(folder)
    assert source.kind == "pair" and list(source.times) == ["texts.json"]


def test_no_flag_names_its_columns(folder):
    assert read_rows(folder, Columns(query="nothing of this name"))[0].query == "q0"
    rows = json.loads((folder / "rows.json").read_text())
    (folder / "rows.json").write_text(json.dumps([{k: v for k, v in row.items() if k != "answer"} for row in rows]))
    with pytest.raises(UserError, match="no column for the answers") as caught:
        read_rows(folder)
    assert "--objective infonce" in str(caught.value) and "'positive'" in str(caught.value)


def test_check_reads_its_corpus(folder, capsys):
    assert cli.main(["check", str(folder), "--json", str(folder.with_name("found.json"))]) == 0
    assert json.loads(folder.with_name("found.json").read_text())["corpus"]["good"] == 4
