"""`ds-rag index`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse

from ds_rag.commands.saved_run import add_reading_flags, refuse_folds, run_together
from ds_rag.config.flags import Parser


def add_flags(parser: Parser) -> None:
    parser.add_argument("--out", help="folder of the index, which is replaced (default: RUN/index)")
    add_reading_flags(parser, own=("retriever", "corpus", "index_factory", "vector_cache"))


def main(args: argparse.Namespace) -> int:
    refuse_folds("ds-rag index", args)
    from ds_rag.commands.index.command import main as work

    return run_together("ds-rag index", work, args)
