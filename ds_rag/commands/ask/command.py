"""`ds-rag ask RUN ["question"]`: an answer, the passages it was read from, and where these are from; without a question
a session, whose models are loaded once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import suppress

from ds_rag.config.flags import as_text
from ds_rag.run.asking import Asker, FoundPassage, Reply
from ds_rag.runtime.console import EMPTY, Console
from ds_rag.runtime.output_places import check_json, write_json

HELP = "one question a line; an empty line or Ctrl-D ends; :N shows passage N of the last answer, :again the questions"
SHOWN = 160  # characters of a passage


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    check_json(args.json, ("question", "passages"))
    console = Console()
    asker = Asker.of_run(args, console)
    if args.question is None:
        return session(asker, console)
    reply = asker.ask(args.question)
    show(reply, console)
    write_json(args.json, reply.as_json() | ({"stale_index": True} if asker.stored.stale else {}))
    return 0


def session(asker: Asker, console: Console) -> int:
    """Answers questions from standard input until it ends."""
    asked: list[Reply] = []
    console.say(HELP)
    for line in lines_of_input():
        if line == ":again":
            for reply in asked:
                console.say(f"{reply.question}   {reply.answer.text if reply.answer else ''}")
        elif line.startswith(":"):
            number = line.removeprefix(":")
            known = asked[-1].passages if asked else []
            if number.isascii() and number.isdigit() and 1 <= int(number) <= len(known):
                passage = known[int(number) - 1]
                console.say(f"{passage.source}: {passage.text}")
            else:
                console.say(f"no such passage: {line}; {HELP}", style="yellow")
        else:
            asked.append(asker.ask(line))
            show(asked[-1], console)
    return 0


def lines_of_input() -> Iterator[str]:
    """Lines from the terminal, with history and editing where there is one, or from a file or pipe; blank ones end a
    terminal's session and are skipped in a file."""
    if not sys.stdin.isatty():
        yield from (text for line in sys.stdin if (text := as_text(line, "a question").strip()))
        return
    with suppress(ImportError):  # a Python without it
        import readline  # noqa: F401  # gives input() its history
    while True:
        try:
            text = as_text(input("question  "), "the question").strip()
        except EOFError:
            return
        if not text:
            return
        yield text


def show(reply: Reply, console: Console) -> None:
    """The answer, then each passage on lines of its own, whole words, so that 80 columns are enough."""
    if reply.answer is not None:
        console.say(f"answer    {reply.answer.text or EMPTY}")
        if not reply.answer.ended:
            console.say("note: the answer was cut: --max_new_tokens allows more", style="yellow")
    console.say("passages")
    for number, passage in enumerate(reply.passages, start=1):
        console.say(
            f"{number:>7}   {passage.source}   (score {passage.score:.3f}, prior {passage.prior:.3f})", style="bold"
        )
        console.block(shortened(passage), indent=10)


def shortened(passage: FoundPassage) -> str:
    text = " ".join(passage.text.split())
    return text if len(text) <= SHOWN else text[:SHOWN].rsplit(" ", 1)[0] + " ..."
