"""BEIR folders: which qrels, which passages, which answers, and what is wrong in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytrec_eval

from ds_rag.data.bad_rows import Reading
from ds_rag.data.dataset import build_table
from ds_rag.data.formats import Columns, read_corpus, read_rows
from ds_rag.evaluation.metrics import retrieval_metrics


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
    files.jsonl("b/corpus.jsonl", [{"_id": "d0", "text": None}])
    qrels.write_text("q0\td0\t1\n")
    assert f"1 bad place:\n  {path}/corpus.jsonl:1: 'text' is missing" in files.error(path)


def small(files: Any, docs: dict[str, str], qrels: str, queries: tuple[str, ...] = ("q0", "q1")) -> Path:
    path = files.beir("b", files.rows(7, n=1))
    files.jsonl("b/corpus.jsonl", [{"_id": id_, "title": "", "text": text} for id_, text in docs.items()])
    files.jsonl("b/queries.jsonl", [{"_id": q, "text": f"{q} ?", "answer": "a"} for q in queries])
    files.put("b/qrels/test.tsv", qrels)
    return path


DOCS = {"d0": "x", "d1": "y", "d2": "x", "d3": "z"}


@pytest.mark.parametrize(
    "lines", [["d0\t3", "d2\t1", "d1\t2"], ["d2\t1", "d1\t2", "d0\t3"], ["d0\t3", "d1\t2", "d2\t0"]]
)
def test_a_text_under_two_ids_has_its_highest_grade(lines: list[str], files: Any) -> None:
    path = small(files, DOCS, "".join(f"q0\t{line}\n" for line in lines))
    (row,) = read_rows(path)
    assert dict(zip(row.positives, row.grades, strict=True)) == {"x": 3, "y": 2} and row.negatives == ()


@pytest.mark.parametrize("score", ["0.4", "1.5", "-0.1", "1e30", "nan", "high", ""])
def test_a_score_that_is_no_whole_number_is_named(score: str, files: Any) -> None:
    path = small(files, DOCS, f"q0\td1\t1.0\nq0\td0\t{score}\n")
    assert f"{path}/qrels/test.tsv:2: " in files.error(path) and "expected" in files.error(path)
    reading = Reading(skip=True)
    (row,) = read_rows(path, reading=reading)
    assert (row.positives, row.grades) == (("y",), ())


def test_a_judgment_twice_is_one_and_must_not_contradict_itself(files: Any) -> None:
    assert read_rows(small(files, DOCS, "q0\td0\t2\nq0\td0\t2\n"))[0].grades == (2,)
    path = small(files, DOCS, "q0\td0\t2\nq0\td0\t1\n")
    assert f"have another score at {path}/qrels/test.tsv:1" in files.error(path)


def test_a_query_of_which_nothing_is_relevant_counts_in_evaluation_and_teaches_nothing(files: Any) -> None:
    path = small(files, DOCS, "q0\td0\t0\nq0\td1\t-1\nq1\td0\t1\n")
    rows = read_rows(path, flag="--eval_data")
    assert [(row.positives, row.judged) for row in rows] == [((), True), (("x",), True)]
    assert build_table(read_corpus(path), [], rows).labelled == [0, 1]
    reading = Reading()
    assert [row.id for row in read_rows(path, reading=reading)] == ["q1"]
    assert "1 queries of which no passage is relevant are left out" in reading.notices[0]


def test_a_bad_document_hides_no_dangling_judgment(files: Any) -> None:
    path = small(files, DOCS | {"d1": "bad \0"}, "q0\td0\t1\nq0\td1\t1\nq0\tgone\t1\nq1\taway\t0\n")
    message = files.error(path)
    assert "3 bad places" in message and f"{path}/corpus.jsonl:2: 'text' holds a NUL" in message
    assert "'gone' is not in" in message and "'away' is not in" in message and "'d1'" not in message
    reading = Reading(skip=True)
    small(files, DOCS | {"d1": "bad \0"}, "q0\td0\t1\nq0\td1\t1\n")
    assert read_rows(path, reading=reading)[0].positives == ("x",)
    assert any("1 judgments name documents that are left out as bad" in n for n in reading.notices)


def test_empty_documents_are_left_out_and_count_as_never_found(files: Any) -> None:
    """They may be relevant: then recall is of them too, as in any other tool."""
    path, reading = small(files, DOCS | {"e": "", "f": " \n"}, "q0\td0\t1\nq0\te\t2\nq1\tf\t0\n"), Reading()
    corpus, rows = read_corpus(path, reading=reading), read_rows(path, flag="--eval_data")
    assert [passage.id for passage in corpus] == ["d0", "d1", "d2", "d3"]
    assert f"2 documents without any text are left out, the first at {path}/corpus.jsonl:5" in reading.notices[0]
    data = build_table(corpus, [], rows)
    assert [(row.positives, row.absent) for row in rows] == [(("x",), (2,)), ((), ())]
    found = retrieval_metrics(
        [["d0", "d1", "d3"]] * 2, [[3.0, 2.0, 1.0]] * 2, [data.qrels(e) for e in data.evaluation], corpus_size=3
    )
    theirs = pytrec_eval.RelevanceEvaluator({"q": {"d0": 1, "e": 2}}, {"recall.5", "ndcg_cut.10"})
    theirs = theirs.evaluate({"q": {"d0": 3.0, "d1": 2.0, "d3": 1.0}})["q"]
    assert found["recall@5"] == pytest.approx(theirs["recall_5"] / 2) == 0.25
    assert found["ndcg@10"] == pytest.approx(theirs["ndcg_cut_10"] / 2)
    small(files, {"t": ""}, "q0\tt\t1\n")
    files.jsonl("b/corpus.jsonl", [{"_id": "t", "title": "only a title", "text": ""}])
    assert read_rows(path)[0].positives == ("only a title",)


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ("query-id\tcorpus-id\tscore", ""),
        ("q0\t1\td0\t1", "TREC's four columns?"),
        ("q0 0 d0 1", "TREC's four columns?"),
        ("q0\td0\tx", "a judgment of query 'q0' without a number"),
        ("q0\td0", "expected query-id, corpus-id and a score"),
        ("", ""),
    ],
)
def test_only_a_header_is_passed_over(first: str, words: str, files: Any) -> None:
    path = small(files, DOCS, f"{first}\nq1\td0\t1\n")
    if not words:
        assert read_rows(path)[0].id == "q1"
    else:
        assert f"{path}/qrels/test.tsv:1: " in (message := files.error(path)) and words in message


@pytest.mark.parametrize("number", ["31", "33", "33b", "35b"])
def test_public_reports(number: str, shared_dir: Path, files: Any) -> None:
    (path,) = (shared_dir / "cases").glob(f"{number}-*")
    if number == "35b":
        message = files.error(path, flag="--data", need_answers=False)
        assert message.startswith(f"--data: {path}: 40 bad places") and "is not in corpus.jsonl" in message
        return
    rows = read_rows(path, flag="--data", need_answers=False)
    data = build_table(read_corpus(path), [], rows)
    if number == "31":
        bare = [row.id for row in rows if not row.positives]
        assert bare and all(row.judged for row in rows) and len(data.labelled) == len(rows)
    else:
        assert sorted(data.evaluation[0].qrels.values(), reverse=True) == [3, 2]


@pytest.mark.parametrize("place", [{"answer": "a"}, {"metadata": {"answers": ["a"]}}, {"metadata": {"answer": "a"}}])
def test_beir_answers(place: dict, files: Any) -> None:
    path = files.beir("b", files.rows(7, n=1))
    files.jsonl("b/queries.jsonl", [{"_id": "q0", "text": "q"} | place])
    # Flags name the columns of other files; a BEIR folder has its own.
    assert read_rows(path, Columns(query="Question"))[0].answers == ("a",)
    files.jsonl("b/queries.jsonl", [{"_id": "q0", "text": "q", "metadata": {}}])
    assert "no column for the answers" in files.error(path)
    assert read_rows(path, need_answers=False)[0].answers == ()
