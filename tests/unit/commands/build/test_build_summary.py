"""The verdict of a build, on tables of which the answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ds_rag.commands.build.options import Wanted
from ds_rag.commands.build.page import write_page
from ds_rag.commands.build.state import Entry, State
from ds_rag.commands.build.summary import summarise
from ds_rag.evaluation.per_question import PerQuestion, write_per_question

QUESTIONS, DOCUMENTS = 240, 30


def put(run: Path, name: str = "recall@1", **figures: float) -> None:
    """Tables of a run in which each ranking finds this fraction of the questions of every document first."""
    run.mkdir(exist_ok=True)
    ids = [f"q{n}" for n in range(QUESTIONS)]
    documents = [f"d{n % DOCUMENTS}" for n in range(QUESTIONS)]
    place = np.arange(QUESTIONS) // DOCUMENTS / (QUESTIONS // DOCUMENTS)

    def first(fraction: float) -> np.ndarray:
        return (place < fraction).astype(float)

    for when in ("before", "after"):
        metrics = {name: first(figures[when])}
        for other in ("bm25", "hybrid"):
            if other in figures:
                metrics[f"{other}/{name}"] = first(figures[other])
        found = PerQuestion(ids, documents, metrics, [["p"]] * QUESTIONS, [[1.0]] * QUESTIONS)
        write_per_question(found, run / when)


@pytest.mark.parametrize(
    ("before", "after", "verdict", "says"),
    [
        (0.25, 0.5, "better", "better: recall@1 0.250 before, 0.500 after training, +25.0 points"),
        (0.5, 0.25, "worse", "worse: recall@1 0.500 before, 0.250 after training, -25.0 points"),
        (0.5, 0.5, "not shown", "not better by more than chance: recall@1 0.500 before, 0.500 after training, +0.0"),
    ],
)
def test_the_verdict(tmp_path, before, after, verdict, says):
    put(tmp_path / "run", before=before, after=after)
    summary = summarise(tmp_path / "run", generated=False)
    assert summary.verdict == verdict and summary.lines[0].startswith(says)
    assert summary.lines[0].endswith("240 held-out questions of 30 documents") and len(summary.lines) == 1
    assert (summary.figure, summary.questions) == ("recall@1", QUESTIONS)
    assert summary.means["trained"]["recall@1"].mean == after and summary.as_json()["verdict"] == verdict


def test_one_question_more_is_chance(tmp_path):
    put(tmp_path / "run", before=0.5, after=0.5)
    from ds_rag.evaluation.per_question import read_per_question

    table = read_per_question(tmp_path / "run/after.questions.parquet")
    table.metrics["recall@1"][np.flatnonzero(table.metrics["recall@1"] == 0)[0]] = 1.0
    write_per_question(table, tmp_path / "run/after")
    assert summarise(tmp_path / "run", generated=False).verdict == "not shown"


def test_a_search_by_words_that_finds_more_is_named(tmp_path):
    put(tmp_path / "run", before=0.25, after=0.5, bm25=0.75, hybrid=0.625)
    summary = summarise(tmp_path / "run", generated=True)
    assert summary.verdict == "better" and list(summary.means) == [
        *("BM25", "zero-shot", "trained", "zero-shot + BM25", "trained + BM25"),
    ]
    assert "the best ranking is BM25, recall@1 0.750; the trained retriever's 0.500" in summary.lines
    assert any("written by a language model" in line for line in summary.lines)
    put(tmp_path / "run", before=0.25, after=0.5, bm25=0.75, hybrid=0.875)
    assert any("--hybrid bm25" in line for line in summarise(tmp_path / "run", generated=False).lines)


def test_without_labels_it_is_the_answer_that_is_looked_for(tmp_path):
    put(tmp_path / "run", name="answer_in_top@1", before=0.25, after=0.5)
    assert summarise(tmp_path / "run", generated=False).lines[0].startswith("better: answer_in_top@1 0.250")


def test_few_documents_are_a_warning_and_none_held_out_is_said(tmp_path):
    put(tmp_path / "run", before=0.25, after=0.5)
    for when in ("before", "after"):
        from ds_rag.evaluation.per_question import read_per_question

        table = read_per_question(tmp_path / f"run/{when}.questions.parquet")
        table.documents = [f"d{n % 4}" for n in range(QUESTIONS)]
        write_per_question(table, tmp_path / "run" / when)
    assert any("too narrow to trust" in line for line in summarise(tmp_path / "run", False).lines)
    empty = summarise(tmp_path, generated=False)
    assert empty.verdict == "unmeasured" and "no rows were held out" in empty.lines[0]


def test_the_page_escapes_what_it_shows(tmp_path):
    put(tmp_path / "run", before=0.25, after=0.5, bm25=0.375)
    state = State(tmp_path / "build.json", {"chunk": Entry("ds-rag chunk '<b>'", "k", "complete", 0, 61.0)})
    counts = {"train": {"rows": 90, "labelled": 80}, "eval": {"rows": 9, "labelled": 9}, "lost": 3}
    file = write_page(Wanted(("docs",), tmp_path), state, summarise(tmp_path / "run", False), counts)
    page = file.read_text()
    assert file == tmp_path / "report.html" and "<b>'" not in page and "&lt;b&gt;" in page
    for text in (
        "better: recall@1 0.250",
        "BM25",
        "0.375 (",
        "61 s",
        "their passages are gone",
        'href="run/report.html"',
    ):
        assert text in page, text
