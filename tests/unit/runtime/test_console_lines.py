from __future__ import annotations

import io
import random

import pytest

from ds_rag.runtime import console as console_module
from ds_rag.runtime.console import Console
from ds_rag.runtime.credentials import printable
from ds_rag.runtime.errors import UserError


@pytest.fixture
def console():
    return Console(io.StringIO())


def printed(console: Console) -> str:
    return console.rich.file.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ntwo lines", "plain\ntwo lines"),
        ("\x1b[2J\x1b]0;title\x07gone", "\ufffd[2J\ufffd]0;title\ufffdgone"),
        ("back\x08\rover\ttab\x00", "back\ufffd\ufffdover\ufffdtab\ufffd"),
        ("Ünï 漢字 😀", "Ünï 漢字 😀"),
        ("bidi \u202e trick", "bidi \ufffd trick"),
    ],
)
def test_printable(text, shown, console):
    assert printable(text) == shown
    console.say(text, lines=True)
    assert printed(console) == shown + "\n"


def test_data_is_not_markup(console):
    console.say("[bold]not bold[/bold] [/] \\[x] [red]")
    console.table("title", ["[name]", "value"], [["[b]x", "1\x1b[0m"]])
    assert "[bold]not bold[/bold] [/] \\[x] [red]" in printed(console)
    assert "[b]x" in printed(console)
    assert "\x1b" not in printed(console)


def test_a_text_of_a_row_stays_on_its_line(console):
    """Or it could look like a line of the program's own. Every kind of line end; in tables and errors too."""
    ends = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"]
    for end in ends:
        console.say(f"question   who?{end}error: forged")
        console.table("t", ["a", "b"], [[f"x{end}error: forged", "y"]])
        print(f"error: {UserError('a bad row', found=f'x{end}error: forged', fix='mend it')}", file=console.rich.file)
    shown = [line for line in printable(printed(console)).split("\n") if "forged" in line]
    assert len(shown) == 3 * len(ends) and not any(line.startswith("error: forged") for line in shown)


def test_lines_of_the_program_s_own_stay(console):
    console.say("warning: x\n  to try: y", lines=True)
    assert printed(console) == "warning: x\n  to try: y\n"
    assert str(UserError("bad", found="\n    - a\n    - b")) == "bad\n  found:    \n    - a\n    - b"


def test_other_ranks_are_silent():
    quiet = Console(io.StringIO(), speaks=False)
    quiet.say("x")
    quiet.table("t", ["a"], [["b"]])
    with quiet.progress(3, "work") as meter:
        meter.advance(3)
    assert printed(quiet) == ""


def test_progress_without_a_terminal_is_lines(console, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: clock[0])
    with console.progress(100, "train", done=10) as meter:
        for seconds, note in ((4, "loss 3"), (11, "loss 2"), (12, None), (23, None)):
            clock[0] = seconds
            meter.advance(10, note)
    lines = printed(console).splitlines()
    assert lines == [
        "train 30/100  1.8 step/s  38 s left  loss 2",
        "train 50/100  1.7 step/s  29 s left  loss 2",
    ]


def test_a_wide_table_becomes_several_and_loses_no_figure(console):
    """At 80 columns: every word and figure stands on one line, each part has the first column."""
    console.rich.width = 80
    columns = ["stages", *(f"name{n}" for n in range(14))]
    rows = [[f"2, 3+offload{r}", *(f"{1000 * r + n}.5" for n in range(14))] for r in (1, 2)]
    console.table("title", columns, rows)
    text = printed(console)
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert all(cell in text.split() for row in rows for cell in row[1:]) and all(name in text for name in columns)
    assert text.count("title") == 1 and text.count("stages") == text.count("┓") > 1


def test_texts_of_a_table_are_broken_between_words(console):
    console.rich.width = 80
    sentence = "passages that the reader prefers although another one is labelled as the right one"
    console.table("title", ["what", "value", "text"], [["row", "12.5", sentence], ["other", "-", "short"]])
    text = printed(console)
    assert max(map(len, text.splitlines())) <= 80 and set(sentence.split()) <= set(text.split())
    assert "│  12.5 │ passages" in text and "│     - │ short" in text, "figures to the right, texts to the left"


def test_no_table_loses_a_word(console):
    """Whatever is in it: long names, sentences and figures, at 80 columns."""
    console.rich.width = 80
    draw = random.Random(0)
    kinds = [
        "1041 of 2000 or so",
        "0.120 0.126 0.130",
        "label-free-covidqa-fold-0-of-5-seed-1",
        "a few words",
        "-",
        "12.5",
    ]
    for _ in range(60):
        columns = [f"column{n}" for n in range(draw.randint(1, 9))]
        rows = [[draw.choice(kinds) for _ in columns] for _ in range(3)]
        console.rich.file.seek(0)
        console.rich.file.truncate()
        console.table("title", columns, rows)
        text = printed(console)
        assert max(map(len, text.splitlines())) <= 80
        found = "".join(text.replace("│", " ").split())
        joined = [word for row in rows for cell in row for word in cell.split()]
        assert all(word in text or word[:20] in found for word in joined), text


def test_a_long_first_column_leaves_room_for_the_others(console):
    console.rich.width = 80
    console.table("title", ["path", "figure", "n"], [["/" + "a" * 100, "0.120 0.126 0.130", "1041"]])
    assert {"0.120", "0.126", "0.130", "1041"} <= set(printed(console).split())
