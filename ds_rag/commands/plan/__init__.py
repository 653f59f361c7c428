"""`ds-rag plan`: what a training run will need (memory, communication, time, an index), and which settings to use.

Everything is computed from the models' shapes. No weights are read, and neither torch nor transformers is imported, so
the answer takes about a second.
"""

from __future__ import annotations

import argparse

from ds_rag.config.flags import Parser


def add_flags(parser: Parser) -> None:
    from ds_rag.commands.plan.request import add_flags

    add_flags(parser)


def main(args: argparse.Namespace) -> int:
    from ds_rag.commands.plan.command import main as work

    return work(args)
