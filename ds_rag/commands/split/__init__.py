"""`ds-rag split`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse
from dataclasses import fields

from ds_rag.config import DataConfig
from ds_rag.config.flags import Parser, add_settings

COLUMNS = {f.name for f in fields(DataConfig) if f.name.endswith("_column")} - {"cluster_column", "scores_column"}
FRACTION = 0.1  # of the rows that are held out, unless --eval_fraction is given


def add_flags(parser: Parser) -> None:
    parser.add_argument("train_data", metavar="DATA", help="the rows, in any format that training takes")
    parser.add_argument("--out", required=True, help="folder of train.jsonl, eval.jsonl and folds.json, the split")
    parser.add_argument(
        "--ignore_labels",
        action="store_true",
        help="keep rows whose labelled passages are not in the corpus, without their labels, if they are the majority",
    )
    own = ("corpus", "eval_data", "eval_fraction")
    add_settings(parser, ("data",), {*own, *COLUMNS, "on_bad_row", "max_train_samples", "max_eval_samples"}, own)


def main(args: argparse.Namespace) -> int:
    from ds_rag.commands.split.command import main as work

    return work(args)
