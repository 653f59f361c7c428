"""What we write is read back equal in every format; whatever else is read gives rows or a UserError, nothing else."""

from __future__ import annotations

import csv
import gzip
import json
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_rag.data.bad_rows import Reading
from ds_rag.data.formats import READERS, read_corpus, read_rows
from ds_rag.data.records import INVISIBLE
from ds_rag.runtime.errors import UserError

datasets.disable_progress_bars()
# Every format but MS MARCO's, which has no answers; and the ways to write some of them.
KINDS = [*(kind for kind in READERS if kind != "msmarco"), "json", "tsv.gz", "jsonl.gz"]
QUIET = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
# Cs: no UTF-8; Cc but for the three blanks: NUL is refused. Texts are stripped, and empty ones refused.
CHARS = st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from(list("\"',;|[]{}\\\n\r\t\u2028\u0085\x1c "))
TEXTS = st.text(CHARS, min_size=1, max_size=20).map(str.strip).filter(bool).filter(lambda t: not is_blank(t))


def is_blank(text: str) -> bool:
    return all(unicodedata.category(char) in INVISIBLE for char in text)


def folder() -> Any:
    return tempfile.TemporaryDirectory(prefix="ds_rag-read-")


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of distinct ids; no text in two roles, as reading leaves them."""
    rows = []
    for n in range(draw(st.integers(1, 4))):
        several = draw(st.lists(TEXTS, min_size=5, max_size=9, unique=True))
        cut = sorted(draw(st.lists(st.integers(1, len(several) - 1), min_size=2, max_size=2)))
        rows.append(
            {
                "id": f"r{n}",
                "query": draw(TEXTS),
                "answers": draw(st.lists(TEXTS, min_size=1, max_size=2, unique=True)),
                "positives": several[: cut[0]],
                "passages": several[cut[0] : cut[1]],
                "negatives": several[cut[1] :],
            }
        )
    return rows


def write(kind: str, place: Path, rows: list[dict[str, Any]]) -> Path:
    if kind.endswith(".gz"):
        plain = write(kind.removesuffix(".gz"), place, rows)
        packed = plain.with_name(plain.name + ".gz")
        packed.write_bytes(gzip.compress(plain.read_bytes(), 1))
        return packed
    if kind in ("csv", "tsv"):
        with (place / f"r.{kind}").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
        return place / f"r.{kind}"
    if kind == "json":
        (place / "r.json").write_text(json.dumps(rows, indent=len(rows) % 3 or None, ensure_ascii=len(rows) % 2 == 0))
        return place / "r.json"
    if kind == "jsonl":
        lines = [json.dumps(row, ensure_ascii=n % 2 == 0) + "\n" for n, row in enumerate(rows)]
        (place / "r.jsonl").write_bytes("".join(lines).encode())
        return place / "r.jsonl"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), place / "r.parquet")
        return place / "r.parquet"
    if kind == "datasets":
        datasets.Dataset.from_list(rows).save_to_disk(str(place / "saved"))
        return place / "saved"
    if kind == "shards":
        (place / "pieces").mkdir()
        for n, part in enumerate((rows[:1], rows[1:])):
            (place / f"pieces/r-{n}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        return place / "pieces"
    assert kind == "beir", f"no writer for the format {kind}"
    (place / "qrels").mkdir()
    corpus, qrels = [], []
    for row in rows:
        for role, score in (("positives", 1), ("negatives", -1)):
            for text in row[role]:
                qrels.append(f"{row['id']}\td{len(corpus)}\t{score}\n")
                corpus.append({"_id": f"d{len(corpus)}", "text": text})
    queries = [{"_id": row["id"], "text": row["query"], "answers": row["answers"]} for row in rows]
    for name, objects in (("corpus", corpus), ("queries", queries)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(o) + "\n" for o in objects))
    (place / "qrels/test.tsv").write_text("".join(qrels))
    return place


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, **QUIET)
@given(rows=tables())
def test_what_is_written_is_read_back_equal(kind: str, rows: list[dict[str, Any]]) -> None:
    with folder() as place:
        read = read_rows(write(kind, Path(place), rows))
        assert [(r.id, r.query) for r in read] == [(row["id"], row["query"]) for row in rows]
        for found, row in zip(read, rows, strict=True):
            assert list(found.answers) == row["answers"] and list(found.positives) == row["positives"]
            assert list(found.negatives) == row["negatives"]
            assert list(found.passages) == ([] if kind == "beir" else row["passages"])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, **QUIET)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_a_corpus_is_read_back_equal(kind: str, texts: list[str]) -> None:
    corpus = [{"_id": f"d{n}", "text": text} for n, text in enumerate(texts)]
    with folder() as name:
        place = Path(name)
        if kind == "beir":
            (place / "corpus.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in corpus))
        else:
            place = write(kind, place, corpus)
        assert [(p.id, p.text) for p in read_corpus(place)] == [(c["_id"], c["text"]) for c in corpus]


ROWS = [
    {"id": "a", "query": "whö", "answers": ["m,e"], "positives": ['I "am"'], "passages": ["x\ny"], "negatives": ["n"]},
    {"id": "b", "query": "what", "answers": ["it", "that"], "positives": ["p"], "passages": [], "negatives": ["q"]},
]


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    """(what, where, bytes): done to a file one after the other."""
    what = st.sampled_from(["replace", "insert", "delete", "cut", "double"])
    piece = st.binary(min_size=1, max_size=4) | st.sampled_from(
        [b'"', b"\n", b"\r", b"\0", b"\xff", b"{", b"[", b",", b"\t"]
    )
    return draw(st.lists(st.tuples(what, st.floats(0, 1), piece), min_size=1, max_size=3))


def mutate(content: bytes, steps: list[tuple[str, float, bytes]]) -> bytes:
    for what, where, piece in steps:
        at = int(where * len(content))
        tail = content[at:]
        if what == "cut":
            content = content[:at]
        elif what == "double":
            content = content + tail
        else:
            content = (
                content[:at] + (b"" if what == "delete" else piece) + tail[0 if what == "insert" else len(piece) :]
            )
    return content


def rows_or_user_error(path: Path, flag: str = "--train_data") -> None:
    for read in (read_rows, read_corpus):
        for skip in (False, True):
            try:
                assert read(path, flag=flag, reading=Reading(skip))
            except UserError as error:
                assert str(path.name) in str(error)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet", "jsonl.gz"])
@settings(max_examples=100, **QUIET)
@given(content=st.binary(max_size=200))
def test_bytes_of_any_kind_give_rows_or_a_user_error(suffix: str, content: bytes) -> None:
    with folder() as place:
        path = Path(place) / f"r.{suffix}"
        path.write_bytes(content)
        rows_or_user_error(path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet", "tsv.gz"])
@settings(max_examples=100, **QUIET)
@given(steps=mutations())
def test_a_mutated_file_gives_rows_or_a_user_error(kind: str, steps: list[tuple[str, float, bytes]]) -> None:
    with folder() as place:
        path = write(kind, Path(place), ROWS)
        path.write_bytes(mutate(path.read_bytes(), steps))
        rows_or_user_error(path)


@settings(max_examples=80, **QUIET)
@given(steps=mutations(), file=st.sampled_from(["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"]))
def test_a_mutated_beir_folder_gives_rows_or_a_user_error(steps: list[tuple[str, float, bytes]], file: str) -> None:
    with folder() as place:
        path = write("beir", Path(place), ROWS)
        (path / file).write_bytes(mutate((path / file).read_bytes(), steps))
        rows_or_user_error(path)


@settings(max_examples=40, **QUIET)
@given(steps=mutations(), n=st.integers(0, 9))
def test_a_mutated_datasets_folder_gives_rows_or_a_user_error(steps: list[tuple[str, float, bytes]], n: int) -> None:
    with folder() as place:
        path = write("datasets", Path(place), ROWS)
        file = sorted(path.iterdir())[n % 3]
        file.write_bytes(mutate(file.read_bytes(), steps))
        rows_or_user_error(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "title", "x"]), inner),
    max_leaves=6,
)


@settings(max_examples=200, **QUIET)
@given(fields=st.dictionaries(st.sampled_from(["id", "query", "answer", "passage", "passages", "negatives"]), JSON))
def test_a_row_of_any_json_values_gives_a_row_or_a_user_error(fields: dict[str, Any]) -> None:
    with folder() as place:
        path = Path(place) / "r.jsonl"
        path.write_text(json.dumps({"query": "q", "answer": "a", "passage": "p"} | fields) + "\n")
        rows_or_user_error(path)
