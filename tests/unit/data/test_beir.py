"""BEIR folders: which qrels, which passages, which answers, and what is wrong in them."""

from __future__ import annotations

from typing import Any

import pytest

from ds_rag.data.bad_rows import Reading
from ds_rag.data.formats import Columns, read_corpus, read_rows


def test_qrels_of_a_beir_folder(files: Any) -> None:
    rows = files.rows(5)
    path = files.beir("b", rows)
    qrels = {name: path / "qrels" / f"{name}.tsv" for name in ("train", "dev", "test")}
    for name, part in (("train", rows[:3]), ("dev", rows[3:])):
        keep = {row["id"] for row in part}
        lines = qrels["test"].read_text().splitlines(keepends=True)
        qrels[name].write_text("".join(line for line in lines if line.split("\t")[0] in {"query-id", *keep}))
    reading = Reading()
    assert [row.id for row in read_rows(path, reading=reading)] == ["q0", "q1", "q2"]
    assert "4 queries are not in train.tsv" in reading.notices[0]
    assert len(read_rows(path, flag="--eval_data")) == 7
    qrels["test"].unlink()
    assert [row.id for row in read_rows(path, flag="--data")] == ["q3", "q4", "q5", "q6"]
    qrels["train"].rename(path / "qrels" / "other.tsv")
    message = files.error(path)
    assert "dev.tsv, other.tsv" in message and "train.tsv" in message
    qrels["dev"].unlink()
    assert len(read_rows(path)) == 3
    (path / "queries.jsonl").unlink()
    assert "without queries.jsonl" in files.error(path)
    assert len(read_corpus(path)) == sum(len(row["positives"] + row["negatives"]) for row in rows)


def test_beir_faults(files: Any) -> None:
    path = files.beir("b", files.rows(6, n=3))
    qrels = path / "qrels" / "test.tsv"
    good = qrels.read_text()
    qrels.write_text(good + "q0\tnone\t1\nq9\td0\t1\nq0 d1 1\n")
    lines = good.count("\n")
    message = files.error(path)
    assert f"{qrels}:{lines + 1}: corpus-id 'none' is not in corpus.jsonl" in message
    assert f"{qrels}:{lines + 2}: query-id 'q9' is not in queries.jsonl" in message
    assert f"{qrels}:{lines + 3}: ['q0 d1 1'], expected query-id" in message
    qrels.write_text(good.replace("q1\td1\t1", "q1\td1\t0").replace("q1\td2\t1", "q1\td2\t0"))
    assert f"{path}/queries.jsonl:2: neither labelled nor unlabelled passages" in files.error(path)
    assert read_rows(path, need_passages=False)[1].positives == ()
    files.jsonl("b/corpus.jsonl", [{"_id": "d0", "text": ""}])
    assert f"1 bad place:\n  {path}/corpus.jsonl:1: 'text' is empty" in files.error(path, need_passages=False)


@pytest.mark.parametrize("place", [{"answer": "a"}, {"metadata": {"answers": ["a"]}}, {"metadata": {"answer": "a"}}])
def test_beir_answers(place: dict, files: Any) -> None:
    path = files.beir("b", files.rows(7, n=1))
    files.jsonl("b/queries.jsonl", [{"_id": "q0", "text": "q"} | place])
    # Flags name the columns of other files; a BEIR folder has its own.
    assert read_rows(path, Columns(query="Question"))[0].answers == ("a",)
    files.jsonl("b/queries.jsonl", [{"_id": "q0", "text": "q", "metadata": {}}])
    assert "no column for the answers" in files.error(path)
    assert read_rows(path, need_answers=False)[0].answers == ()
