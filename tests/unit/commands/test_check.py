"""ds-rag check: its figures against hand-counted files, its exit codes. (tests/faults has what is bad in rows.)"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_rag.commands import cli
from ds_rag.config import DataConfig
from ds_rag.data.dataset import read_data

ROWS = [
    {"id": "a", "query": "who ?", "answer": "one two", "positive": "p q r", "passages": ["c"]},
    {"id": "a", "query": "who ?", "answer": "one two", "positive": "p q r", "passages": ["c"]},
    {"id": "b", "query": "WHO  ?", "answer": "three", "passages": ["c", "d"]},
    {"id": "c", "query": "", "answer": "x", "positive": "p"},
]


def put(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def check(tmp_path: Path, *argv: str, code: int = 0) -> dict[str, Any]:
    assert cli.main(["check", *argv, "--json", str(tmp_path / "found.json")]) == code
    return json.loads((tmp_path / "found.json").read_text())


def test_the_figures_of_a_small_file(tmp_path, capsys):
    found = check(tmp_path, put(tmp_path / "r.jsonl", ROWS), code=1)
    rows = found["rows"]
    assert (rows["good"], rows["merged"], rows["bad_rows"], found["bad_rows"]) == (2, 1, 1, 1)
    assert rows["listed"] == [f"{tmp_path}/r.jsonl:4: 'query' is empty, expected text"]
    counts = rows["counts"]
    assert (counts["with labelled positives"], counts["without labelled positives"]) == (1, 1)
    assert (counts["repeated queries"], counts["queries with differing answers"]) == (1, 1)
    assert rows["per_row"]["candidates, all"] == {"min": 2, "median": 2, "95%": 2, "max": 2}
    lengths = found["lengths"]
    assert lengths["passage"]["words"] == {"texts": 3, "min": 1, "median": 1, "95%": 3, "max": 3}
    assert lengths["answer"]["characters"] == {"texts": 2, "min": 5, "median": 7, "95%": 7, "max": 7}
    assert "retriever tokens" not in lengths["query"] and found["overlap"] is None and "corpus" not in found
    printed = capsys.readouterr().out
    assert "1 bad row" in printed and "repeated and merged" in printed


def test_evaluation_rows_and_a_corpus(tmp_path):
    train = put(tmp_path / "r.jsonl", ROWS[:3])
    held = put(tmp_path / "e.jsonl", [{"query": "Who ?", "positive": "p q r"}, {"query": "new", "positive": "z"}])
    corpus = put(tmp_path / "c.jsonl", [{"id": n, "text": text} for n, text in enumerate(("c", "C", "p q r", "c"))])
    found = check(tmp_path, train, "--eval_data", held, "--corpus", corpus)
    assert found["overlap"] == {
        "queries": 1,
        "of queries": 2,
        "labelled passages": 1,
        "of labelled passages": 2,
    }
    counts = {"repeated texts": 1, "repeated but for case and blanks": 2, "almost repeated": 0}
    assert found["corpus"]["counts"] == counts | {"with a title": 0, "documents": 0}
    assert found["lengths"]["passage"]["words"]["texts"] == 5, "the corpus's and the rows', each once"
    assert found["eval_data"]["good"] == 2
    put(tmp_path / "c.jsonl", [{"id": 1, "text": "c"}, {"id": 1, "text": "d"}])
    assert check(tmp_path, train, "--corpus", corpus, code=1)["corpus"]["bad_rows"] == 1


def test_rows_of_queries_and_answers_alone_are_good_beside_a_corpus(tmp_path):
    bare = put(tmp_path / "r.jsonl", [{"query": "q", "answer": "a", "passages": []}])
    corpus = put(tmp_path / "c.jsonl", [{"text": "c"}])
    assert check(tmp_path, bare, "--corpus", corpus)["rows"]["counts"]["without any passage"] == 1
    assert check(tmp_path, bare, code=1)["bad_rows"] == 1


def test_a_beir_folder_brings_its_corpus(tmp_path):
    (tmp_path / "b/qrels").mkdir(parents=True)
    put(tmp_path / "b/corpus.jsonl", [{"_id": "d", "text": "x"}, {"_id": "e", "text": "x"}])
    put(tmp_path / "b/queries.jsonl", [{"_id": "q", "text": "who", "answer": "a"}])
    (tmp_path / "b/qrels/train.tsv").write_text("q\td\t1\nq\tgone\t1\n")
    found = check(tmp_path, str(tmp_path / "b"), code=1)
    assert found["rows"]["listed"] == [f"{tmp_path}/b/qrels/train.tsv:2: corpus-id 'gone' is not in corpus.jsonl"]
    assert found["corpus"]["counts"]["repeated texts"] == 1


@pytest.mark.parametrize("empty", ["rows", "eval_data", "corpus"])
def test_a_file_without_rows_is_not_good(empty, tmp_path, capsys):
    """Training refuses it too."""
    files = {"rows": ROWS[:1], "eval_data": ROWS[:1], "corpus": [{"text": "c"}]} | {empty: []}
    rows, held, corpus = (put(tmp_path / f"{name}.jsonl", lines) for name, lines in files.items())
    found = check(tmp_path, rows, "--eval_data", held, "--corpus", corpus, code=1)
    assert (found["empty"], found["bad_rows"]) == ([empty], 0)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"no bad rows; {empty.replace('_', ' ')}: nothing in {tmp_path}/{empty}.jsonl"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "nothing to check"),
        (["--eval_data", "r.jsonl", "--corpus", "r.jsonl"], "nothing to check"),
        (["missing.jsonl"], "does not exist"),
        (["r.jsonl", "--corpsu", "c.jsonl"], "did you mean --corpus?"),
        (["r.jsonl", "--generator", "./nowhere"], "not a model folder"),
        (["rows", "--generator", "./nowhere"], "neither a path here nor in the hub's cache"),
    ],
)
def test_what_a_user_can_mend_is_code_2(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "r.jsonl", ROWS[:1])
    assert cli.main(["check", *argv]) == 2
    assert words in capsys.readouterr().err


def test_what_training_would_say_is_said(tmp_path, capsys):
    """The same notices as in training, of each file and of all together, by the same code."""
    rows = [{"qid": 1, "query": f"q{n}", "answer": "a", "positive": f"the {n}", "prompt": "do"} for n in range(4)]
    corpus = [{"id": n, "title": "T", "text": f"the {n}", "url": "u"} for n in range(3)]
    files = [put(tmp_path / "r.jsonl", rows), "--corpus", put(tmp_path / "c.jsonl", corpus)]
    found = check(tmp_path, *files)
    data = read_data(DataConfig(train_data=files[0], corpus=files[2]), builtin=False)
    said = found["rows"]["notices"] + found["corpus"]["notices"] + found["notices"]
    assert said == data.notices and len(said) == 3
    assert "warning: 1 of 4 labelled passages of training rows are not in the corpus" in found["notices"]
    printed = " ".join(capsys.readouterr().out.split())
    assert all(" ".join(notice.split()) in printed for notice in said)
    assert "note: --corpus" in printed and "note: warning" not in printed
    assert found["lost"] == ["1-4"] and "corpus: 1-4 (q3)" in printed, "the row is named"


def test_rows_of_texts_and_ids_are_no_good_rows(tmp_path, capsys):
    rows = [{"query": "q", "answer": "a", "positive": text} for text in ("7", "of something")]
    rows = put(tmp_path / "r.jsonl", rows)
    found = check(tmp_path, rows, "--corpus", put(tmp_path / "c.jsonl", [{"id": 7, "text": "of something"}]), code=1)
    assert found["bad_rows"] == 0 and "rows name their passages by id" in found["refused"]
    printed = capsys.readouterr().out
    assert "rows name their passages by id" in printed and "training refuses them" in printed.splitlines()[-1]


def test_documents_and_their_effective_number(tmp_path, capsys):
    rows = [{"query": f"q{n}", "answer": "a", "positive": f"a text {n % 4}"} for n in range(10)]
    corpus = [{"text": f"a text {n}", "document": f"d{n // 2}"} for n in range(3)]  # d0: 3 + 3 rows, d1: 2, none: 2
    found = check(tmp_path, put(tmp_path / "r.jsonl", rows), "--corpus", put(tmp_path / "c.jsonl", corpus))
    assert found["documents"] == {
        "rows": {"rows with a document": 8, "documents": 2, "effective number of documents": 1.6}
    }
    assert "effective number of documents" in " ".join(capsys.readouterr().out.split())
    found = check(tmp_path, put(tmp_path / "r.jsonl", rows))
    assert found["documents"]["rows"]["documents"] == 0 and "effective" not in capsys.readouterr().out
