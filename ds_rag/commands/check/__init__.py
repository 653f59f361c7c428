"""`ds-rag check`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse
from dataclasses import fields

from ds_rag.config import DataConfig
from ds_rag.config.flags import Parser, add_settings


def add_flags(parser: Parser) -> None:
    of_texts = {"retriever", "generator", "query_prefix", "passage_prefix"}
    of_texts |= {"prompt_template", "chat_template", "prompt_version"}
    of_rows = {f.name for f in fields(DataConfig)} - {"train_data", "on_bad_row", "assume_first_positive", "world_seed"}
    of_rows -= {"train_labels", "folds", "fold", "fold_corpus", "eval_fraction", "cluster_column"}
    parser.add_argument(
        "train_data",
        metavar="DATA",
        nargs="?",
        default=argparse.SUPPRESS,
        help="the rows, in any format that training takes; without them --corpus alone is checked",
    )
    parser.add_argument("--json", help="also write everything to this file")
    only = of_texts | of_rows | {"trust_remote_code"}
    add_settings(parser, ("data", "model"), only, own=("eval_data", "corpus", "retriever", "generator"))


def main(args: argparse.Namespace) -> int:
    from ds_rag.commands.check.command import main as work

    return work(args)
