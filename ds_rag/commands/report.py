"""`ds-rag report RUN`: writes the report.html of a run again."""

from __future__ import annotations

import argparse
from pathlib import Path

from ds_rag.config.flags import Parser
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError


def add_flags(parser: Parser) -> None:
    parser.add_argument("run", help="a run's folder")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")


def main(args: argparse.Namespace) -> int:
    run = Path(args.run)
    if not run.is_dir():
        raise UserError("ds-rag report: not a folder", found=run, expected="a run's folder")
    from ds_rag.run import export
    from ds_rag.run.report.page import MADE_HERE, write_report
    from ds_rag.runtime import json_files

    page = run / "report.html"
    if page.is_file() and MADE_HERE not in page.read_text(encoding="utf-8", errors="replace"):
        raise UserError("another report.html is there", found=page, expected="none, or this run's", fix="rename it")
    export.ready(run, only={json_files.CONFIG, json_files.RESULTS})
    Console().say(str(write_report(run)))
    return 0
