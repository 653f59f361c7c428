"""`ds-rag evaluate`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse

from ds_rag.commands.saved_run import add_reading_flags, add_teacher_cache, run_together
from ds_rag.config.flags import Parser, add_settings


def add_flags(parser: Parser) -> None:
    parser.add_argument("--data", dest="eval_data", default=argparse.SUPPRESS, help="the held-out rows")
    parser.add_argument(
        "--controls",
        action="store_true",
        help="also answer without a passage, from a random one, from the gold one, and without the first retrieved",
    )
    parser.add_argument("--index", help="folder of an index of this retriever and corpus (default: RUN/index)")
    parser.add_argument("--json", help="also write the figures to this file")
    add_reading_flags(parser, own=("retriever", "generator", "corpus", "hybrid", "rerank", "vector_cache"))
    add_settings(parser, ("objective",), only=("answer_logprob", "answer_exponent", "answer_weight"), own=())
    add_teacher_cache(parser)


def main(args: argparse.Namespace) -> int:
    from ds_rag.commands.evaluate.command import main as work

    return run_together("ds-rag evaluate", work, args)
