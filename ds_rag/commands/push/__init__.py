"""`ds-rag push`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse

from ds_rag.config.flags import Parser

PARTS = ("retriever", "generator", "index")


def add_flags(parser: Parser) -> None:
    parser.add_argument("run", help="a finished run's folder")
    parser.add_argument(
        "--to", required=True, help="the repository on the hub, org/name; it is made if it is not there"
    )
    parser.add_argument(
        "--part",
        action="append",
        choices=PARTS,
        help="what is uploaded: retriever, generator or index (which holds the corpus's texts); may be repeated. One "
        "part alone lies at the root of the repository, several in folders (default: retriever and generator)",
    )
    parser.add_argument("--public", action="store_true", help="everybody may read it (default: a private repository)")
    parser.add_argument("--dry_run", action="store_true", help="list the files and their sizes, and upload nothing")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")


def main(args: argparse.Namespace) -> int:
    from ds_rag.commands.push.command import main as work

    return work(args)
