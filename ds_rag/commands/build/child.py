"""Runs a stage as a process of its own: its console is shown and kept in a log, and signals are passed on to it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ds_rag.runtime.command_exit import INTERRUPTED
from ds_rag.runtime.console import COLUMNS
from ds_rag.runtime.standard_streams import guarded

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CLI = ("-m", "ds_rag.commands.cli")


def command_of(words: Sequence[str], ranks: int) -> tuple[list[str], str]:
    """(the process to start, the same as it would be typed)."""
    shown = f"ds-rag {shlex.join(words)}"
    if ranks == 1:
        return [sys.executable, *CLI, *words], shown
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return [
        sys.executable,
        *launcher,
        *CLI,
        *words,
    ], f"torchrun --standalone --nproc_per_node {ranks} --no-python -- {shown}"


def run(command: Sequence[str], log: Path, held: Sequence[int] = ()) -> tuple[int, bool]:
    """Runs a command to its end. Returns its exit code (128 + the number of the signal that ended it; 130 after Ctrl-C)
    and whether it was asked to stop. What it prints is shown and added to `log`.

    A signal goes to the process alone, which ends as it does by itself; a second Ctrl-C kills it. held: descriptors
    that the process keeps open, such as that of a lock, which then lasts as long as the process.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    out = guarded(sys.stdout)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if out.isatty():
        environment[COLUMNS] = str(shutil.get_terminal_size().columns)
    with log.open("ab") as kept:
        kept.write(f"$ {shlex.join(command)}\n".encode("utf-8", "surrogateescape"))
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # the terminal's Ctrl-C comes here, and is passed on once
            pass_fds=tuple(held),
        )
        assert child.stdout is not None
        with passing_on(child) as asked, child.stdout:
            for line in child.stdout:
                kept.write(line)
                kept.flush()
                out.write(line.decode("utf-8", "replace"))
                out.flush()
            code = child.wait()
    if signal.SIGINT in asked:
        return INTERRUPTED, True
    return (code if code >= 0 else 128 - code), bool(asked)


@contextmanager
def passing_on(child: subprocess.Popen[Any]) -> Iterator[list[int]]:
    """Passes signals on to the process; yields the list of those that came."""
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        again = number in asked
        asked.append(number)
        if again and number == signal.SIGINT:
            child.kill()
        else:
            child.send_signal(number)

    heard = [number for number in PASSED_ON if signal.getsignal(number) != signal.SIG_IGN]  # not under nohup
    before = {number: signal.signal(number, pass_on) for number in heard}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
