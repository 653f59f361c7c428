"""Every format gives the same rows and names the place of a fault; real rows."""

from __future__ import annotations

import json
import random
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from ds_rag.data import formats
from ds_rag.data.bad_rows import Reading
from ds_rag.data.format import Format, has_suffix
from ds_rag.data.formats import READERS, Passage, passages_of, read_corpus, read_rows

KINDS = [kind for kind in READERS if kind != "msmarco"]  # which has no answers: test_layouts.py


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_format_gives_the_same_rows(kind: str, seed: int, files: Any) -> None:
    written = files.rows(seed)
    rows = read_rows(files.write(kind, written))
    assert len({row.where for row in rows}) == len(written)
    if kind == "beir":  # it has no place for unlabelled candidates
        written = [row | {"passages": []} for row in written]
    tuples = [{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in written]
    assert [{k: v for k, v in asdict(row).items() if k in written[0]} for row in rows] == tuples
    assert not any(row.grades for row in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_corpus(kind: str, tmp_path: Path, files: Any) -> None:
    rng = random.Random(2)
    corpus = [{"_id": f"d{i}", "title": "Zor" * (i % 2), "text": f"{files.text(rng)} {i}"} for i in range(9)]
    path = tmp_path / "beir"
    if kind == "beir":
        path.mkdir()
        files.jsonl("beir/corpus.jsonl", corpus)
    else:
        path = files.write(kind, corpus)
    joined = [f"Zor {d['text']}" if d["title"] else d["text"] for d in corpus]
    assert read_corpus(path) == [Passage(d["_id"], t) for d, t in zip(corpus, joined, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_names_the_place_of_a_fault(kind: str, files: Any) -> None:
    written = files.rows(3)
    written[4]["query"] = "  "
    path = files.write(kind, written)
    message = files.error(path, flag="--eval_data")
    place = dict.fromkeys(("csv", "tsv"), rf"{path}:\d+: ")
    place |= {"jsonl": f"{path}:5: ", "beir": f"{path}/queries.jsonl:5: "}
    place["shards"] = f"{path}/rows-00001-of-00002.jsonl:2: "
    assert re.search(place.get(kind, f"{path}:row 5: ") + "'query' is (empty|missing)", message), message
    assert message.startswith(f"--eval_data: {path}: 1 bad place:")


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_says_that_nothing_is_there(kind: str, tmp_path: Path, files: Any) -> None:
    path = {"csv": "r.csv", "jsonl": "r.jsonl", "parquet": "r.parquet"}.get(kind, kind)
    message = files.error(tmp_path / path, flag="--eval_data")
    assert message.startswith(f"--eval_data: {tmp_path / path} does not exist") and "expected" in message


def test_relative_paths_and_nearest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Any) -> None:
    monkeypatch.chdir(tmp_path)
    files.put("train.jsonl", files.line())
    assert read_rows("train.jsonl")[0].where == "train.jsonl:1"
    message = files.error(Path("trian.jsonl"))
    assert "did you mean train.jsonl" in message and str(tmp_path) in message
    assert read_rows(tmp_path)[0].where == f"{tmp_path}/train.jsonl:1", "the only file, named like a split"
    (tmp_path / "train.jsonl").rename(tmp_path / "rows.jsonl")
    message = files.error(tmp_path)
    assert "neither a datasets folder nor a BEIR folder" in message and "did you mean" in message


def test_without_a_corpus_it_is_the_rows_passages(files: Any) -> None:
    rows: list[dict] = [
        {"positives": ["p"], "passages": ["c"], "negatives": ["n"]},
        {"positives": ["c", "d"]},
    ]
    rows = [{"query": "q", "answer": "a"} | row for row in rows]
    passages = passages_of(read_rows(files.jsonl("r.jsonl", rows)))
    assert [passage.text for passage in passages] == ["p", "c", "n", "d"]
    assert len({passage.id for passage in passages}) == 4


SHARDS = {
    "csv": "query,answer,passage\n{q},a,p\n",
    "jsonl": '{{"query": "{q}", "answer": "a", "passage": "p"}}\n',
}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002", "train-00001-of-00002"],
        ["0000", "0001"],
        ["rows_9", "rows_10"],
        ["part-00000-5f1c-c000.snappy", "part-00001-5f1c-c000.snappy"],
    ],
)
def test_a_folder_of_pieces_is_one_data_set(kind: str, names: list[str], files: Any) -> None:
    """In the order of their numbers; the files that Spark and the hub put beside them do not count."""
    (files.folder / "data").mkdir()
    for n, name in enumerate(names):
        if kind == "parquet":
            table = pyarrow.Table.from_pylist([{"query": f"q{n}", "answer": "a", "passage": "p"}])
            pyarrow.parquet.write_table(table, files.folder / f"data/{name}.parquet")
        else:
            files.put(f"data/{name}.{kind}", SHARDS[kind].format(q=f"q{n}"))
    for other in ("_SUCCESS", ".part-00000.crc", "README.md"):
        files.put(f"data/{other}", "")
    assert [row.query for row in read_rows(files.folder / "data", flag="--eval_data")] == ["q0", "q1"]
    assert len(read_rows(files.folder, flag="--eval_data")) == 2, "the folder around them holds nothing else to read"


def test_splits_and_missing_pieces_of_a_folder(files: Any) -> None:
    folder = files.folder / "data"
    folder.mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        files.put(f"data/{name}.csv", SHARDS["csv"].format(q=name))
    assert [row.query[:5] for row in read_rows(folder)] == ["train", "train"], "never test rows among them"
    message = files.error(folder, flag="--eval_data")
    assert "more than one split" in message and "found:    test, train" in message and f"{folder}:test" in message
    assert [row.query[:4] for row in read_rows(Path(f"{folder}:test"), flag="--eval_data")] == ["test"]
    assert "no split 'dev'" in files.error(Path(f"{folder}:dev"), flag="--eval_data")
    (folder / "train-00001-of-00002.csv").unlink()
    assert "shards are missing" in files.error(folder) and "fetch the other 1" in files.error(folder)
    for file in folder.iterdir():
        file.unlink()
    for name in ("a.csv", "b.csv"):  # no numbers: nobody says that they belong together
        files.put(f"data/{name}", SHARDS["csv"].format(q=name))
    assert "nor one of numbered shards" in files.error(folder) and "did you mean" not in files.error(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_stops_at_the_limit(kind: str, files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = files.rows(3, n=60)
    if kind == "parquet":  # in more row groups than are needed
        path = files.folder / "rows.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=5)
    else:
        path = files.write(kind, rows)
    monkeypatch.setattr(formats, "LOOK", 2)
    read, real = [], formats.READERS[kind]

    def counted(*args: Any) -> Any:
        for record in real.read(*args):
            read.append(record)
            yield record

    monkeypatch.setitem(formats.READERS, kind, replace(real, read=counted))
    assert [row.id for row in read_rows(path, limit=4)] == [row["id"] for row in rows[:4]]
    assert len(read) <= 6
    read.clear()
    assert len(read_rows(path)) == len(read) == 60 and len(read_rows(path, limit=99)) == 60


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_what_lies_beyond_the_limit_is_not_even_decoded(kind: str, files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text file is read by line: of a large one, no more than the buffers take."""
    monkeypatch.setattr(formats, "LOOK", 2)
    path = files.write(kind, files.rows(3, n=9))
    with path.open("ab") as file:
        file.write(b"x" * 1_000_000 + b"\n\xff\n" * 3)
    assert len(read_rows(path, limit=5)) == 5
    assert "is not UTF-8" in files.error(path)


def test_a_bad_row_within_the_limit_is_made_up_for(files: Any) -> None:
    path = files.put("r.jsonl", files.line(query="one") + files.line(query="") + files.line(query="two") * 2)
    assert "1 bad place" in files.error(path, limit=2)
    assert [row.query for row in read_rows(path, limit=2, reading=Reading(skip=True))] == ["one", "two"]


def test_splits_of_a_datasets_folder(tmp_path: Path, files: Any) -> None:
    def save(name: str, *splits: str) -> Path:
        parts = {s: datasets.Dataset.from_list([{"query": s, "answer": "a", "passage": "p"}]) for s in splits}
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / name))
        return tmp_path / name

    assert read_rows(save("one", "dev"))[0].query == "dev"
    several = save("several", "test", "train")
    assert read_rows(several)[0].query == "train"
    message = files.error(several, flag="--eval_data")
    assert "found:    test, train" in message and f"--eval_data {several}/test" in message
    assert read_rows(several / "test", flag="--eval_data")[0].query == "test"
    assert read_rows(f"{several}:test", flag="--eval_data")[0].query == "test"
    assert read_rows(f"{several}:test")[0].query == "test", "a split that is named is taken for training, too"
    message = files.error(f"{several}:dev")
    assert "no split 'dev'" in message and "found:    test, train" in message
    message = files.error(save("untrained", "test", "dev"))
    assert "'train'" in message and "test, dev" in message
    (several / "train" / "state.json").write_text("{}")
    assert "no readable datasets folder" in files.error(several / "train")


def test_pubmedqa_as_a_dalm_csv(shared_dir: Path, files: Any) -> None:
    written = [json.loads(line) for line in (shared_dir / "data/pubmedqa/train.jsonl").open()]
    dalm = [{"Abstract": r["passage"], "Question": r["query"], "Answer": r["answer"]} for r in written]
    rows = read_rows(files.csv("dalm.csv", dalm))
    plain = read_rows(shared_dir / "data/pubmedqa/train.jsonl")
    assert len(rows) == 500 and [row.id for row in plain] == [r["id"] for r in written]
    assert [replace(row, id="", where="") for row in rows] == [replace(row, id="", where="") for row in plain]


def test_covidqa(shared_dir: Path) -> None:
    folder = shared_dir / "data/covidqa/dev_beir"
    rows, corpus = read_rows(folder, flag="--eval_data"), read_corpus(folder)
    assert (len(rows), len(corpus)) == (164, 545)
    assert all(row.answers and len(row.positives) == 1 for row in rows)
    assert {row.positives[0] for row in rows} <= {passage.text for passage in corpus}
    rows = read_rows(shared_dir / "data/covidqa/train.jsonl")
    train = read_rows(shared_dir / "data/covidqa/train_beir")
    assert [(r.id, r.query, r.answers, r.positives) for r in rows] == [
        (r.id, r.query, r.answers, r.positives) for r in train
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_one_format_recognises_what_was_written_in_it(kind: str, files: Any) -> None:
    path = files.write(kind, files.rows(0))
    assert [name for name, one in READERS.items() if one.recognises(path)] == [kind]
    assert formats.detect(path, "--corpus") == kind
    assert READERS[kind].what in files.error(files.folder / "nowhere")


def test_a_suffix_in_capitals_is_one_and_a_folder_with_a_suffix_is_none(files: Any) -> None:
    assert formats.detect(files.put("ROWS.CSV", "query,answer,passage\n"), "--corpus") == "csv"
    (files.folder / "rows.jsonl").mkdir()
    assert "neither a datasets folder" in files.error(files.folder / "rows.jsonl")


def test_a_new_format_is_a_line_of_the_table(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a suffix that nothing else knows; it is looked for in the table's order, and read as any other."""
    path = files.put("rows.rag", files.line())
    assert "unknown kind of file" in files.error(path)
    new = Format("a .rag file", has_suffix(".rag"), READERS["jsonl"].read)
    monkeypatch.setitem(formats.READERS, "rag", new)
    assert [row.query for row in read_rows(path)] == ["who"]
