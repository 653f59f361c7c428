"""Which passages `ds-rag evaluate` searches for other rows than a run's, and rows that have no labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small
from small import TEXTS, finished_run

from ds_rag.commands import cli


def put(file: Path, objects: list[dict[str, Any]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(o) + "\n" for o in objects))
    return str(file)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a corpus of its own, other rows with one labelled passage of it, and rows without passages."""
    folder: Path = tmp_path_factory.mktemp("corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(small.SAID, "corpus", str(folder / "corpus.jsonl"))
        finished_run(folder)
    put(folder / "other.jsonl", [{"query": "where 1 ?", "answer": "x", "positive": TEXTS[1]}])
    put(folder / "bare.jsonl", [{"query": "where ?", "answer": TEXTS[0].split()[-1]}])
    put(folder / "ids.jsonl", [{"query": "where ?", "answer": "x", "positive_ids": ["p1"]}])
    return folder


def passages(place: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    out = place / "scores.json"
    assert cli.main(["evaluate", *flags, "--json", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found["setting"]["passages"], found


def test_other_rows_are_searched_in_the_runs_corpus_unless_a_flag_says_otherwise(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, rows = ["--run", str(place / "run")], ["--data", str(place / "other.jsonl")]
    assert passages(place, *run, *rows)[0] == len(TEXTS)
    assert "the run's own corpus" in capsys.readouterr().out
    assert passages(place, *run, *rows, "--corpus", "none")[0] == 1
    one = put(place / "two.jsonl", [{"id": "a", "text": TEXTS[1]}, {"id": "b", "text": "another"}])
    assert passages(place, *run, *rows, "--corpus", one)[0] == 2
    capsys.readouterr()
    assert passages(place, "--retriever", str(place / "run/retriever"), *rows)[0] == 1
    assert "only the passages of these rows are searched" in capsys.readouterr().out


def test_rows_that_bring_a_corpus_are_searched_in_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beir = place / "beir"
    put(beir / "corpus.jsonl", [{"_id": "a", "text": TEXTS[1]}, {"_id": "b", "text": "another"}])
    put(beir / "queries.jsonl", [{"_id": "q", "text": "where 1 ?"}])
    (beir / "qrels").mkdir()
    (beir / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\n")
    assert passages(place, "--run", str(place / "run"), "--data", str(beir))[0] == 2
    assert "the run's own corpus" not in capsys.readouterr().out


def test_labels_by_id_are_those_of_the_runs_corpus(place: Path) -> None:
    count, found = passages(place, "--run", str(place / "run"), "--data", str(place / "ids.jsonl"))
    assert count == len(TEXTS) and "recall@1" in found["retrieval"]


@pytest.mark.parametrize("models", ["--run RUN", "--retriever RUN/retriever", "--retriever bm25"])
def test_rows_of_questions_and_answers_alone(place: Path, models: str, capsys: pytest.CaptureFixture[str]) -> None:
    opened = models.replace("RUN", str(place / "run")).split()
    flags = ["--data", str(place / "bare.jsonl"), "--corpus", str(place / "corpus.jsonl")]
    count, found = passages(place, *opened, *flags)
    assert (count, found["retrieval"]) == (len(TEXTS), {}) and "answer_in_top@1" in found["without_labels"]
    assert "recall is not measured" in " ".join(capsys.readouterr().out.split())


def test_such_rows_without_a_corpus_are_told_of_one_and_of_no_flag_of_training(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["evaluate", "--retriever", "bm25", "--data", str(place / "bare.jsonl")]
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert "--corpus FILE" in said and "--candidates_from" not in said
