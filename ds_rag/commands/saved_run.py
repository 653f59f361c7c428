"""What commands that read a saved run have in common: their flags, and ranks that share the work."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection

from ds_rag.config.flags import Parser, add_settings
from ds_rag.runtime.launcher_env import allow_open_files

READING = ("data", "model", "evaluation")  # the sections of the configuration that reading a saved run can use


def add_reading_flags(parser: Parser, run: str = "--run", own: Collection[str] = ("retriever", "generator")) -> None:
    """`--run` (or `run`, as an argument), `--device`, and every setting of data, models and evaluation. own: those of
    the settings that a plain `--help` shows."""
    parser.add_argument(run, help="a run's folder")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    add_settings(parser, READING, own=own)


def together(name: str, work: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """A command that several ranks may share: one that waits in vain for another names the command."""
    allow_open_files(os.environ)
    from ds_rag.runtime.stop_agreement import naming

    with naming(name):
        return work(args)
