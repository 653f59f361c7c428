"""`ds-rag serve RUN`: a small HTTP server that answers with a run's models, and a page to try it."""

from __future__ import annotations

import argparse
from pathlib import Path

import uvicorn

from ds_rag.commands.serve.app import Limits, make_app
from ds_rag.commands.serve.hosts import allowed_hosts
from ds_rag.run.asking import Asker
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError


def main(args: argparse.Namespace) -> int:
    """Runs the command until it is interrupted."""
    console = Console()
    hosts = allowed_hosts(args.host, args.allow_host)
    asker = Asker.of_run(args, console)
    if asker.saved.generator is None:
        raise UserError(
            f"{args.run}: no generator, so there are no answers to serve", fix="--generator MODEL names one"
        )
    limits = Limits(args.max_body, args.max_waiting, args.max_seconds, asker.settings.max_new_tokens)
    app = make_app(asker, Path(args.run).resolve().name, hosts, limits)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=args.host,
            port=args.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=4 * args.max_waiting + 16,
            timeout_keep_alive=5,
            h11_max_incomplete_event_size=16384,
        )
    )
    socket = server.config.bind_socket()
    port = socket.getsockname()[1]
    name = f"[{args.host}]" if ":" in args.host else args.host
    console.say(f"a page to try it    http://{name}:{port}/")
    console.say(f"chat completions    http://{name}:{port}/v1/chat/completions")
    console.say("Ctrl-C ends")
    server.run(sockets=[socket])
    return 0
