"""Every format gives the same rows and names the place of a fault; real rows."""

from __future__ import annotations

import json
import random
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from ds_rag.data.formats import READERS, Passage, passages_of, read_corpus, read_rows


@pytest.mark.parametrize("kind", READERS)
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


@pytest.mark.parametrize("kind", READERS)
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


@pytest.mark.parametrize("kind", READERS)
def test_every_format_names_the_place_of_a_fault(kind: str, files: Any) -> None:
    written = files.rows(3)
    written[4]["query"] = "  "
    path = files.write(kind, written)
    message = files.error(path, flag="--eval_data")
    place = {"csv": rf"{path}:\d+: ", "jsonl": f"{path}:5: ", "beir": f"{path}/queries.jsonl:5: "}
    assert re.search(place.get(kind, f"{path}:row 5: ") + "'query' is (empty|missing)", message), message
    assert message.startswith(f"--eval_data: {path}: 1 bad place:")


@pytest.mark.parametrize("kind", READERS)
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
    message = files.error(tmp_path)
    assert "neither a datasets folder nor a BEIR folder" in message and "train.jsonl" in message


def test_without_a_corpus_it_is_the_rows_passages(files: Any) -> None:
    rows: list[dict] = [
        {"positives": ["p"], "passages": ["c"], "negatives": ["n"]},
        {"positives": ["c", "d"]},
    ]
    rows = [{"query": "q", "answer": "a"} | row for row in rows]
    passages = passages_of(read_rows(files.jsonl("r.jsonl", rows)))
    assert [passage.text for passage in passages] == ["p", "c", "n", "d"]
    assert len({passage.id for passage in passages}) == 4


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
