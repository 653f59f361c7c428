"""Lines for a narrow terminal: no word is broken, the further lines stand below the first one's text."""

from __future__ import annotations

import io

import pytest

from ds_rag.runtime.console import COLUMNS, Console
from ds_rag.runtime.wrapping import wrapped

LONG = "a verdict of many words that does not fit into one line of a narrow terminal"


@pytest.mark.parametrize(
    ("lead", "margin"),
    [("verdict    ", 11), ("  found:    ", 12), ("           ", 11), ("note: ", 2), ("", 2), ("held back  ", 11)],
)
def test_lines_are_broken_between_words_below_their_text(lead: str, margin: int) -> None:
    first, *more = wrapped(lead + LONG, 40).split("\n")
    assert first.startswith(lead) and more and all(len(line) <= 40 for line in (first, *more))
    assert all(line[:margin].isspace() and line[margin] != " " for line in more)
    assert " ".join([first, *more]).split() == (lead + LONG).split()


def test_what_fits_is_as_it_was_and_long_words_stay_whole() -> None:
    assert wrapped("two   blanks, and  more", 40) == "two   blanks, and  more"
    path = "/a/path/" + "x" * 60
    assert path in wrapped(f"report     {path} (4 steps)", 40).split()
    assert wrapped("one\n" + LONG, 40).startswith("one\n")


def test_a_console_breaks_lines_for_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    piped = io.StringIO()
    Console(piped).say(f"verdict    {LONG}")
    assert piped.getvalue() == f"verdict    {LONG}\n"
    monkeypatch.setenv(COLUMNS, "40")
    shown = io.StringIO()
    Console(shown).say(f"verdict    {LONG}")
    assert shown.getvalue() == wrapped(f"verdict    {LONG}", 40) + "\n"


def test_a_command_is_never_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    command = 'ds-rag ask runs/with-a-long-name "a question of yours"'
    monkeypatch.setenv(COLUMNS, "40")
    shown = io.StringIO()
    Console(shown).command("next", command, "an answer with its passages")
    first, *below = shown.getvalue().splitlines()
    assert first == f"next       {command}" and " ".join(" ".join(below).split()) == "(an answer with its passages)"
    monkeypatch.setenv(COLUMNS, "110")
    wide = io.StringIO()
    Console(wide).command("next", command, "an answer")
    assert wide.getvalue() == f"next       {command}   (an answer)\n"
