"""`ds-rag score`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse

from ds_rag.commands.saved_run import run_together
from ds_rag.config.flags import Parser, add_training_flags, config_of
from ds_rag.runtime.errors import UserError

SHOWN = (  # by `--help`
    *("train_data", "corpus", "max_train_samples", "max_query_length", "max_passage_length", "max_answer_length"),
    *("retriever", "generator", "prompt_template", "objective", "candidates_from", "index_candidates"),
    *("teacher_cache", "vector_cache", "deepspeed"),
)


def add_flags(parser: Parser) -> None:
    """Those of training: what is scored depends on most of them, and must be what a run with them looks for."""
    add_training_flags(parser, own=SHOWN)
    parser.add_argument("--out", help="also write the rows with their passages and scores to this file, as JSON lines")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")


def main(args: argparse.Namespace) -> int:
    config = config_of(args)
    if not config.scoring.teacher_cache:
        raise UserError(
            "ds-rag score: no place for the scores",
            expected="--teacher_cache DIR, and the other flags of the training run",
        )
    from ds_rag.commands.score.command import main as work

    return run_together("ds-rag score", lambda _: work(config, args.out, args.overwrite), args)
