"""`ds-rag chunk`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse

from ds_rag.config.bounds import ITEMS, TOKENS, fraction, integer
from ds_rag.config.flags import Parser, add_number, add_settings

SHOWN = ("retriever", "generator", "max_passage_length", "passage_prefix")  # by `--help`
OTHERS = ("prompt_template", "chat_template", "prompt_version", "trust_remote_code")


def add_flags(parser: Parser) -> None:
    parser.add_argument("documents", nargs="+", metavar="DOCS", help="files and folders of documents")
    parser.add_argument("--out", required=True, help="the JSON lines of passages to write, for --corpus")
    add_number(
        parser,
        "overlap",
        integer(0, TOKENS),
        "tokens of a passage that the next one below the same heading begins with (default: 0)",
        0,
    )
    add_number(
        parser,
        "min_tokens",
        integer(0, TOKENS),
        "a passage with less text joins its neighbour below the same heading, where that fits (default: 32; 0: never)",
        32,
    )
    parser.add_argument(
        "--keep_boilerplate", action="store_true", help="keep lines and paragraphs that stand in many documents"
    )
    add_number(
        parser,
        "boilerplate_documents",
        integer(2, ITEMS),
        "documents, at the least, in which boilerplate stands (default: 5)",
        5,
    )
    add_number(
        parser,
        "boilerplate_fraction",
        fraction(),
        "fraction of the documents, at the least, in which boilerplate stands (default: 0.3)",
        0.3,
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --out if something else wrote it")
    parser.add_argument("--json", help="also write what was found to this file")
    add_settings(parser, ("data", "model"), {*SHOWN, *OTHERS}, own=SHOWN)


def main(args: argparse.Namespace) -> int:
    from ds_rag.commands.chunk.command import main as work

    return work(args)
