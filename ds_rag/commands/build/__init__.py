"""`ds-rag build`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse

from ds_rag.config.bounds import integer
from ds_rag.config.flags import Parser, add_number, add_training_flags

SHOWN = (  # by `--help`
    *("retriever", "generator", "corpus", "eval_data", "eval_fraction"),
    *("max_passage_length", "max_answer_length", "num_train_epochs", "seed"),
)
YES = {  # flags without a value
    "label_free": "do not use the labels of --rows: the language model's likelihoods teach the retriever",
    "force": "train on the language model's likelihoods even if the audit advises against it",
    "keep_model": "keep the trained models: only cut the documents into passages again and bring the index up to date",
    "dry_run": "print the stages, their command lines and predicted cost, and do nothing",
}


def add_flags(parser: Parser) -> None:
    parser.add_argument("documents", nargs="*", metavar="DOCS", help="files or folders of documents")
    parser.add_argument("--rows", help="your questions with answers; without them, questions are generated")
    parser.add_argument("--out", required=True, help="folder of everything that is built; the same again: go on in it")
    for name, text in YES.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--question_generator", help="another language model that writes the questions")
    add_number(
        parser, "nproc_per_node", integer(1, 1024), "ranks of each stage that can share its work (default: 1)", 1
    )
    for name in ("chunk", "qa_gen", "audit"):
        command = name.replace("_", "-")
        parser.add_argument(f"--{name}_args", metavar="'FLAGS'", help=f"further flags of ds-rag {command}, in quotes")
    add_training_flags(parser, own=SHOWN)


def main(args: argparse.Namespace) -> int:
    from ds_rag.commands.build.command import main as work

    return work(args)
