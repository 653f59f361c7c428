"""`ds-rag COMMAND ...`: the table of commands. Each is a module of this folder with `add_flags(parser)` and
`main(args)`, imported when it is called."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import ds_rag
from ds_rag.config.flags import Parser, parse_strictly
from ds_rag.runtime.command_exit import run_command
from ds_rag.runtime.errors import choose
from ds_rag.runtime.launcher_env import adopt_srun, check_launch
from ds_rag.runtime.safe_loading import forbid_pickles
from ds_rag.runtime.standard_streams import flush_standard_streams, guard_standard_streams, read_utf8

# Name of a command and of its module ('-' is '_' there) -> the summary that --help shows.
COMMANDS = {
    "build": "from a folder of documents to a trained and measured system, in one folder",
    "train": "train retriever and generator together",
    "evaluate": "score a run, or a pair of model folders, on held-out rows",
    "errors": "the questions that an evaluation got wrong, likely false negatives first",
    "compare": "is the difference between runs or systems more than chance? Question by question, by document",
    "index": "encode a corpus with a run's retriever and build its FAISS index",
    "merge": "add a run's adapters to the weights of their bases: models without adapters",
    "push": "upload a finished run's models to the Hugging Face hub, to a private repository unless --public",
    "verify": "is a run, a checkpoint or an index complete? Every file is compared with its hash",
    "ask": "answer a question with a run's models and index",
    "serve": "answer over HTTP, in the form of chat completions, with a page to try it",
    "audit": "before training: can this generator teach this retriever on these rows? Figures, a verdict, settings",
    "chunk": "passages of a folder of documents, as long as a retriever reads; a second call does what changed",
    "qa-gen": "write questions and answers about passages with a language model, and keep those that pass filters",
    "check": "bad rows, duplicates, labels and lengths of data, before training; returns 1 if rows are bad or missing",
    "split": "hold out whole documents of the rows, and leave out rows that lost their passage",
    "mine": "write rows with hard negatives, found by a retriever",
    "score": "score rows' passages with a frozen generator ahead of training, into --teacher_cache",
    "plan": "what a run will need (memory, GPUs, time, the index), and the flags for it",
    "report": "write report.html of a run again",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 after a message about what to fix."""
    guard_standard_streams()
    read_utf8()
    try:
        return answer(list(sys.argv[1:] if argv is None else argv))
    finally:
        flush_standard_streams()


def answer(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: ds-rag COMMAND ...   (ds-rag COMMAND --help)\n       ds-rag --version\n")
        print("\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items()))
        return 0
    if argv[0] == "--version":
        print(ds_rag.__version__)
        return 0
    forbid_pickles()

    def body() -> int:
        adopt_srun()  # a command must know its rank before it locks a folder
        check_launch(os.environ)
        return run(argv[0], argv[1:])

    return run_command(body, debug="--debug" in argv)


def run(name: str, argv: Sequence[str]) -> int:
    """Runs one command with its arguments; returns its exit code. Raises UserError; `--help` prints and exits."""
    args = arguments(name, argv)
    return int(module_of(name).main(args))


def arguments(name: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command's arguments. Raises UserError."""
    return parse_strictly(parser_of(name), argv)


def parser_of(name: str) -> Parser:
    """The parser of a command. Raises UserError for an unknown name."""
    summary = choose(COMMANDS, name, "command")
    parser = Parser(f"ds-rag {name}", f"{summary[0].upper()}{summary[1:]}.")
    module_of(name).add_flags(parser)
    return parser


def module_of(name: str) -> ModuleType:
    return import_module(f"ds_rag.commands.{name.replace('-', '_')}")


if __name__ == "__main__":
    sys.exit(main())
