"""`ds-rag ask`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse

from ds_rag.commands.saved_run import add_reading_flags, refuse_folds
from ds_rag.config.flags import Parser, as_text
from ds_rag.runtime.errors import UserError


def add_flags(parser: Parser) -> None:
    own = ("top_k", "decode", "hybrid", "retriever", "generator")
    add_reading_flags(parser, "run", own=own, needed=False)
    parser.add_argument("question", nargs="?", help="the question, in quotes; without it, a session: one a line")
    parser.add_argument("--index", help="folder of another index (default: RUN/index); with --retriever, no RUN")
    parser.add_argument("--allow_stale", action="store_true", help="search an index of other weights, with a warning")
    parser.add_argument("--json", help="also write answer and passages to this file")


def main(args: argparse.Namespace) -> int:
    refuse_folds("ds-rag ask", args)
    if args.index and "retriever" in args and args.question is None:  # an index without a run: no RUN stands before it
        args.question, args.run = args.run, None
    elif args.run is None:
        raise UserError(
            "nothing to ask", expected="ds-rag ask RUN, or --index FOLDER --retriever MODEL for an index without a run"
        )
    if args.question is not None:
        args.question = as_text(args.question, "the question")
        if not args.question.strip():
            raise UserError("no question", found=repr(args.question), expected="some words, in quotes")
    elif args.json:
        raise UserError(
            "--json without a question", expected="one question", fix='ds-rag ask RUN "question" --json FILE'
        )
    from ds_rag.commands.ask.command import main as work

    return work(args)
