"""`ds-rag ask RUN` without a question: a session over standard input, with a stand-in for the models."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from small import TEXTS, finished_run

from ds_rag.commands import cli
from ds_rag.commands.ask import command
from ds_rag.evaluation.decoding import Answer
from ds_rag.run.asking import FoundPassage, Reply
from ds_rag.runtime.console import Console

LONG = "a word " * 60


class StandIn:
    def ask(self, question: str) -> Reply:
        passages = [FoundPassage("p1", LONG, 0.5, 0.75, "a.md", "page 3"), FoundPassage("p2", "second", 0.25, 0.25)]
        return Reply(question, Answer(f"to {question}", -1.0, ended=question != "long"), passages)


def session(monkeypatch: pytest.MonkeyPatch, typed: str) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    out = io.StringIO()
    assert command.session(StandIn(), Console(out)) == 0  # type: ignore[arg-type]
    return out.getvalue()


def test_each_line_is_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    said = session(monkeypatch, "who?\n\n  where? \n:again\n")
    assert said.index("answer    to who?") < said.index("answer    to where?")
    assert said.endswith("who?   to who?\nwhere?   to where?\n"), "what was asked so far"


def test_an_answer_that_was_cut_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert session(monkeypatch, "who?\nlong\nwhere?\n").count("--max_new_tokens") == 1


def test_passages_have_their_documents_and_are_shown_in_full_when_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = session(monkeypatch, "who?\n:1\n:3\n:x\n")
    assert "1   a.md, page 3   (score 0.500, prior 0.750)" in said and "2   p2   (score 0.250" in said
    assert said.count(LONG.strip()) == 1 and " ...\n" in said
    assert said.count("no such passage") == 2


def test_no_word_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    block = io.StringIO()
    Console(block).block("passages " * 30, indent=10)
    lines = block.getvalue().splitlines()
    assert len(lines) > 2 and all(line.startswith(" " * 10 + "passages") for line in lines)
    assert set(block.getvalue().split()) == {"passages"}


def test_an_index_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `ds-rag index --retriever` made is asked with the same model: the words after the flags are the question."""
    run, corpus, index = finished_run(tmp_path), str(tmp_path / "corpus.jsonl"), str(tmp_path / "own")
    models = ["--retriever", str(run / "retriever")]
    assert cli.main(["index", *models, "--corpus", corpus, "--out", index]) == 0
    assert "ds-rag ask --index" in capsys.readouterr().out
    found = tmp_path / "found.json"
    assert cli.main(["ask", TEXTS[1], "--index", index, *models, "--top_k", "2", "--json", str(found)]) == 0
    of_run = tmp_path / "of_run.json"
    assert cli.main(["ask", str(run), TEXTS[1], "--top_k", "2", "--json", str(of_run)]) == 0
    one, other = (json.loads(file.read_text()) for file in (found, of_run))
    assert one["passages"] == other["passages"] and one["answer"] is None and other["answer"] is not None
    assert cli.main(["ask"]) == 2 and "ds-rag ask RUN" in capsys.readouterr().err
