"""`ds-rag ask RUN` without a question: a session over standard input, with a stand-in for the models."""

from __future__ import annotations

import io

import pytest

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
