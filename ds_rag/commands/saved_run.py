"""What commands that read a saved run have in common: flags, and work that is split among ranks."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection
from typing import Any

from ds_rag.config.flags import Parser, add_settings, settings_of
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.launcher_env import allow_open_files

READING = ("data", "model", "evaluation")  # sections of the configuration that apply to a saved run


def add_reading_flags(
    parser: Parser, run: str = "--run", own: Collection[str] = ("retriever", "generator"), needed: bool = True
) -> None:
    """Adds `--run` (or `run`, as an argument, which may be left out if it is not needed), `--device`, and every setting
    of data, models and evaluation. own: the settings that a plain `--help` shows."""
    may_lack: dict[str, Any] = {} if needed else {"nargs": "?"}
    parser.add_argument(run, help="a run's folder", **may_lack)
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    add_settings(parser, READING, own=own)


def refuse_folds(name: str, args: argparse.Namespace) -> None:
    """For commands that hold no rows out. Raises UserError where folds are asked for."""
    if given := [f"--{key}" for key in ("folds", "fold") if settings_of(args).get(key) is not None]:
        raise UserError(
            f"{name} divides no rows into folds, so these settings have no effect here",
            found=", ".join(given),
            fix="leave them out",
        )


def add_teacher_cache(parser: Parser) -> None:
    """Adds `--teacher_cache`, to a command that scores answers."""
    add_settings(parser, ("scoring",), only=("teacher_cache",), own=("teacher_cache",))


def teacher_cache(args: argparse.Namespace) -> str | None:
    """The folder, where this call names one: that of the run's training is not meant."""
    return getattr(args, "teacher_cache", None)


def run_together(name: str, work: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Runs a command that several ranks may call together. If a rank waits in vain for another one, its error names the
    command."""
    allow_open_files(os.environ)
    from ds_rag.runtime.stop_agreement import naming

    with naming(name):
        return work(args)
