"""Is an index that of its corpus? Every kind of source: as it was, touched, edited (with size or time kept, or not),
with a file more, of another kind, changed while it was read; an index of the version before."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ds_rag.commands.verify.command import findings_of as verify
from ds_rag.data import corpus_state as module
from ds_rag.data.corpus_state import source_of, unchanged
from ds_rag.data.formats import read_corpus
from ds_rag.index import corpus_check
from ds_rag.index.corpus_check import check_corpus, source_note
from ds_rag.index.store import Manifest, StoredIndex, describe
from ds_rag.runtime import atomic_folders
from ds_rag.runtime.errors import UserError

TEXTS = ["flint lies in zor", "ebony lies in mel", "kelp lies in dor"]
SETTINGS = SimpleNamespace(normalize=True, pooling="mean")


def put(path: Path, kind: str, texts: list[str]) -> Path:
    """The corpus in this kind of source; returns the file that holds the texts."""
    rows = [{"_id": f"c{n}", "text": text} for n, text in enumerate(texts)]
    if kind == "csv":
        path.write_text("_id,text\n" + "".join(f"{r['_id']},{r['text']}\n" for r in rows))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "beir":
        path.mkdir(exist_ok=True)
        (path / "queries.jsonl").write_text("")
        return put(path / "corpus.jsonl", "jsonl", texts)
    elif kind == "datasets":
        import datasets

        shutil.rmtree(path, ignore_errors=True)
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
        return next(path.glob("*.arrow"))
    return path


NAMES = {"csv": "c.csv", "jsonl": "c.jsonl", "parquet": "c.parquet", "beir": "beir", "datasets": "saved"}


@pytest.fixture(params=NAMES)
def made(request, tmp_path) -> tuple[StoredIndex, Path, str]:
    """(an index as opened, its source, the kind)"""
    path = tmp_path / NAMES[request.param]
    put(path, request.param, TEXTS)
    return index_of(path), path, request.param


def index_of(path: Path) -> StoredIndex:
    found = source_of(path)
    texts = [p.text for p in read_corpus(path)]
    manifest = replace(describe("m", 8, texts, "Flat", SETTINGS), source=str(found.path), source_files=found.sealed())
    facts = json.loads(json.dumps(asdict(manifest)))  # as from the disk
    return StoredIndex(None, [f"c{n}" for n in range(len(texts))], texts, Manifest(**facts))  # type: ignore[arg-type]


@pytest.fixture
def work(monkeypatch) -> dict[str, int]:
    """How often a source is parsed, and its files are hashed."""
    counts = {"parsed": 0, "hashed": 0}

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            counts[name] += 1
            return function(*args, **named)

        return call

    monkeypatch.setattr(corpus_check, "read_corpus", counted("parsed", read_corpus))
    monkeypatch.setattr(module, "measure", counted("hashed", module.measure))
    return counts


def files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]


def test_a_source_as_it_was_is_not_even_opened(made, work, tmp_path, monkeypatch):
    stored, path, _ = made
    monkeypatch.chdir(tmp_path)
    for given in (None, str(path), path.name):
        check_corpus(stored, tmp_path, given)
    assert work == {"parsed": 0, "hashed": 0}


def test_a_touched_or_copied_source_is_hashed_and_not_parsed(made, work, tmp_path):
    stored, path, _ = made
    before = len(stored.manifest.source_files["files"])
    for file in files(path):
        os.utime(file, ns=(1, 1))
    check_corpus(stored, tmp_path)
    assert work == {"parsed": 0, "hashed": before}
    copy = tmp_path / f"copy-{path.name}"
    shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
    check_corpus(stored, tmp_path, str(copy))
    assert work == {"parsed": 0, "hashed": 2 * before}


@pytest.mark.parametrize("word", ["opals", "opal"], ids=["same size", "another size"])
def test_an_edited_source_is_refused_with_the_counts(made, work, tmp_path, word):
    stored, path, kind = made
    put(path, kind, [TEXTS[0].replace("flint", word), *TEXTS[1:]])
    for file in files(path):  # or it is all done within one tick of the clock
        os.utime(file, ns=(1, 1))
    with pytest.raises(UserError, match="is not what this index was made from") as caught:
        check_corpus(stored, tmp_path)
    assert "1 not in the index" in str(caught.value) and work["parsed"] == 1


def test_another_order_is_parsed_and_passes(made, work, tmp_path):
    stored, path, kind = made
    put(path, kind, TEXTS[::-1])
    for file in files(path):
        os.utime(file, ns=(1, 1))
    check_corpus(stored, tmp_path)
    assert work["parsed"] == 1


def test_only_files_that_hold_passages_count(tmp_path, work):
    put(tmp_path / "beir", "beir", TEXTS)
    stored = index_of(tmp_path / "beir")
    (tmp_path / "beir/queries.jsonl").write_text('{"_id": "q", "text": "where ?"}\n')
    check_corpus(stored, tmp_path)
    assert work["parsed"] == 0 and list(stored.manifest.source_files["files"]) == ["corpus.jsonl"]
    put(tmp_path / "saved", "datasets", TEXTS)
    stored = index_of(tmp_path / "saved")
    (tmp_path / "saved/more.arrow").write_bytes(b"x")
    check_corpus(stored, tmp_path)
    assert work["parsed"] == 1, "a file more may be read or not: the reader knows"


def test_the_same_bytes_of_another_kind_are_read(tmp_path, work):
    stored = index_of(put(tmp_path / "c.csv", "csv", ["one", "two"]))
    os.rename(tmp_path / "c.csv", tmp_path / "c.jsonl")
    with pytest.raises(UserError):
        check_corpus(stored, tmp_path, str(tmp_path / "c.jsonl"))
    assert work["parsed"] == 1


@pytest.mark.parametrize("older", [{"source_files": {}}, {"version": "0.0.1"}, {"source_files": {"files": {}}}])
def test_where_nothing_is_known_the_source_is_parsed_as_before(tmp_path, work, older):
    stored = index_of(put(tmp_path / "c.jsonl", "jsonl", TEXTS))
    if older.get("source_files") == {"files": {}}:
        older = {"source_files": {"kind": "jsonl", "files": {}}}
    stored.manifest = replace(stored.manifest, **older)
    check_corpus(stored, tmp_path)
    assert work["parsed"] == 1
    put(tmp_path / "c.jsonl", "jsonl", TEXTS[:2])
    with pytest.raises(UserError, match="0 not in the index, 1 of the index's"):
        check_corpus(stored, tmp_path)


def test_an_old_manifest_without_the_key_opens():
    facts = asdict(describe("m", 8, TEXTS, "Flat", SETTINGS))
    del facts["source_files"]
    assert Manifest(**facts).source_files == {}


def test_a_source_that_changes_while_it_is_used_is_not_vouched_for(tmp_path):
    path = put(tmp_path / "c.jsonl", "jsonl", TEXTS)
    found = source_of(path)
    put(path, "jsonl", TEXTS[:2])
    assert found.sealed() == {} and not unchanged(path, {})
    path.unlink()
    assert found.sealed() == {}


def test_size_and_time_put_back_pass_and_verify_sees_them(tmp_path):
    path = put(tmp_path / "c.jsonl", "jsonl", TEXTS)
    stored, time = index_of(path), path.stat().st_mtime_ns
    put(path, "jsonl", [TEXTS[0].replace("flint", "opals"), *TEXTS[1:]])
    os.utime(path, ns=(time, time))
    check_corpus(stored, tmp_path)
    assert "has been changed since" in source_note(asdict(stored.manifest))
    run, begun = tmp_path / "run", atomic_folders.begin(tmp_path / "run/index")
    atomic_folders.seal(begun, run / "index", {"kind": "index", **asdict(stored.manifest)})
    (finding,) = verify(run)
    assert not finding.wrong and str(path) in finding.note
    put(path, "jsonl", TEXTS)
    assert source_note(asdict(stored.manifest)) == ""
