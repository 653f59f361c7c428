"""`ds-rag compare`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse

from ds_rag.config.flags import Parser


def add_flags(parser: Parser) -> None:
    what = (
        "a run (one alone: before against after), a JSON of `ds-rag evaluate`, or NAME=PATH[,PATH...]: seeds and folds"
    )
    parser.add_argument("systems", nargs="+", metavar="SYSTEM", help=what)
    parser.add_argument("--figure", default="recall@1", help="the one figure with a verdict (default: recall@1)")
    parser.add_argument(
        "--cluster_column",
        type=str,
        default="document",
        help="column of the questions' table that says what goes together; none: every question by itself",
    )
    parser.add_argument("--different_data", action="store_true", help="also where rows or corpus are not the same")
    parser.add_argument("--json", help="write the comparison to this file too")
    parser.add_argument("--plot", help="write a picture (PNG) to this file too")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")


def main(args: argparse.Namespace) -> int:
    from ds_rag.commands.compare.command import main as work

    return work(args)
