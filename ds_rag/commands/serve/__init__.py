"""`ds-rag serve`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from ds_rag.commands.saved_run import add_reading_flags, refuse_folds
from ds_rag.config.bounds import ITEMS, above, integer
from ds_rag.config.flags import Parser, add_number
from ds_rag.runtime.errors import UserError

LIBRARIES = ("fastapi", "uvicorn")


def add_flags(parser: Parser) -> None:
    add_reading_flags(parser, "run", own=("top_k", "decode", "hybrid", "max_new_tokens"))
    parser.add_argument("--index", help="folder of another index (default: RUN/index)")
    parser.add_argument("--allow_stale", action="store_true", help="search an index of other weights, with a warning")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    add_number(parser, "port", integer(0, 65535), "port to listen on; 0: a free one (default: 8000)", 8000)
    parser.add_argument(
        "--allow_host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which others reach this server, as it stands in their address bar; may be repeated",
    )
    add_number(parser, "max_body", integer(1, 1 << 30), "bytes of the largest request (default: 65536)", 65536)
    add_number(parser, "max_waiting", integer(1, ITEMS), "requests that wait for their turn (default: 16)", 16)
    add_number(parser, "max_seconds", above(0, 86_400), "seconds until a request is given up (default: 120)", 120.0)


def main(args: argparse.Namespace) -> int:
    refuse_folds("ds-rag serve", args)
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        raise UserError(f"ds-rag serve: no {' and no '.join(missing)}", fix="pip install 'ds_rag[server]'")
    from ds_rag.commands.serve.command import main as work

    return work(args)
