"""`ds-rag audit`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse

from ds_rag.commands.saved_run import add_reading_flags, add_teacher_cache, run_together
from ds_rag.config.bounds import ITEMS, Number, integer
from ds_rag.config.flags import Parser


def add_flags(parser: Parser) -> None:
    parser.add_argument("--data", dest="eval_data", default=argparse.SUPPRESS, help="rows with answers")
    # Some of these have a setting's name and another meaning or bounds, so they are kept under names of their own.
    numbers = (
        ("sample", "rows to audit, drawn evenly over documents (default: 200)", 200, 1),
        ("candidates", "passages that are read for each row (default: 16)", 16, 2),
        ("seed", "of the sample (default: 0)", 0, 0),
    )
    for name, text, default, least in numbers:
        number = Number(name, integer(least, ITEMS))
        parser.add_argument(f"--{name}", dest=f"audit_{name}", metavar="N", type=number, default=default, help=text)
    parser.add_argument(
        "--candidates_from",
        dest="audit_candidates_from",
        choices=("index", "bm25"),
        default="index",
        help="whose first passages are the candidates: the retriever's, or BM25's (default: index)",
    )
    parser.add_argument("--question_likelihood", action="store_true", help="also read log p(question | passage)")
    parser.add_argument("--ignore_labels", action="store_true", help="audit as if no passage were labelled")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--plot", help="also write a picture (PNG) to this file")
    add_reading_flags(parser, own=("retriever", "generator", "corpus", "vector_cache"))
    add_teacher_cache(parser)


def main(args: argparse.Namespace) -> int:
    from ds_rag.commands.audit.command import main as work

    return run_together("ds-rag audit", work, args)
