"""`ds-rag verify`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse

from ds_rag.config.flags import Parser


def add_flags(parser: Parser) -> None:
    parser.add_argument("path", help="the folder")
    parser.add_argument("--json", help="also write the result to this file")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")


def main(args: argparse.Namespace) -> int:
    from ds_rag.commands.verify.command import main as work

    return work(args)
