"""`ds-rag merge`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse

from ds_rag.commands.saved_run import add_reading_flags
from ds_rag.config.flags import Parser


def add_flags(parser: Parser) -> None:
    parser.add_argument("--out", help="folder of the models (default: RUN/merged)")
    add_reading_flags(parser, own=())


def main(args: argparse.Namespace) -> int:
    from ds_rag.commands.merge.command import main as work

    return work(args)
