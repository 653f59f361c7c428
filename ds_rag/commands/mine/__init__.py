"""`ds-rag mine`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse
import math

from ds_rag.commands.saved_run import add_reading_flags, add_teacher_cache, refuse_folds, run_together
from ds_rag.config.bounds import ITEMS, above, inner_fraction, integer, real
from ds_rag.config.flags import Parser, add_number


def add_flags(parser: Parser) -> None:
    parser.add_argument("--data", dest="eval_data", default=argparse.SUPPRESS, help="the rows to mine for")
    parser.add_argument("--out", required=True, help="the JSONL file to write")
    add_number(parser, "negatives", integer(1, ITEMS), "most negatives mined for a row (default: 7)", 7)
    add_number(parser, "depth", integer(1, ITEMS), "passages examined for each row (default: 50)", 50)
    add_number(
        parser,
        "margin",
        above(0, 1e6, math.inf),
        "highest score of a negative, as a fraction of the positive's (default: 0.95; inf: off)",
        0.95,
    )
    add_number(parser, "absolute_margin", real(0, 1e9), "least distance of a negative's score below the positive's")
    add_number(parser, "max_score", real(-1e9, 1e9), "highest score of a negative")
    add_number(
        parser, "posterior", inner_fraction(), "highest p(passage | query, answer) of a negative, by the generator"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    parser.add_argument("--json", help="also write the counts to this file")
    add_reading_flags(parser, own=("retriever", "generator", "corpus", "vector_cache"))
    add_teacher_cache(parser)


def main(args: argparse.Namespace) -> int:
    refuse_folds("ds-rag mine", args)
    from ds_rag.commands.mine.command import main as work

    return run_together("ds-rag mine", work, args)
