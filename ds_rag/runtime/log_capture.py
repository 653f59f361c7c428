"""Sends what libraries print to the run's log file; from `capture()` on, the console is ours alone.

Libraries write warnings and INFO lines to standard output and error, some from C++. `capture()` points both
file descriptors at `RUN/run.log` (one file a rank) and keeps the real terminal for `Console`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import IO, Any

from ds_rag.runtime.console import Console
from ds_rag.runtime.credentials import printable
from ds_rag.runtime.standard_streams import guarded

_terminal_error: IO[str] | None = None  # the real standard error, once `capture()` has sent 2 to the log
_log_file: Path | None = None  # where 1 and 2 point since then


def capture(folder: Path, rank: int) -> Console:
    """Sends everything but our own console to `folder/run.log` (`run-rankN.log` for others).

    Our lines go to the real standard output, tracebacks and user errors to the real standard error.
    """
    global _terminal_error
    sys.stdout.flush()
    sys.stderr.flush()
    terminal, _terminal_error = (copy_of(stream) for stream in (1, 2))
    redirect(folder, rank)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.captureWarnings(True)
    console = Console(terminal, speaks=rank == 0)
    loud = Console(_terminal_error)

    def report(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        into_log(printable("".join(traceback.format_exception(kind, error, trace))))
        if not issubclass(kind, KeyboardInterrupt):
            loud.say("".join(traceback.format_exception(kind, error, trace)).rstrip(), lines=True)
        loud.say(f"rank {rank} stopped: {kind.__name__}; the libraries' messages are in {_log_file}")

    sys.excepthook = report
    return console


def redirect(folder: Path, rank: int) -> None:
    """Points file descriptors 1 and 2 at this rank's log file in `folder`. Called again for another folder, it takes
    along what was logged, and the folder where that was goes if nothing else is in it."""
    global _log_file
    path, before = folder / ("run.log" if rank == 0 else f"run-rank{rank}.log"), _log_file
    if path == before:
        return
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    if before is not None and before.exists():
        os.write(log, before.read_bytes())
        before.unlink()
        with contextlib.suppress(OSError):
            before.parent.rmdir()
    os.close(log)
    _log_file = path


def terminal_error() -> IO[str] | None:
    """The real standard error, where `capture()` has kept it."""
    return _terminal_error


def log_file() -> Path | None:
    """The file that standard output and error go to, where `capture()` has sent them there."""
    return _log_file


def copy_of(descriptor: int) -> IO[str]:
    """The console as it is now, in its own encoding. When it takes nothing more, the log says so."""
    encoding = (sys.stdout, sys.stderr)[descriptor - 1].encoding or "utf-8"
    stream = os.fdopen(os.dup(descriptor), "w", encoding=encoding, buffering=1)
    return guarded(stream, lambda error: into_log(f"the console takes nothing more ({error}); the work goes on"))


def into_log(message: str) -> None:
    """A last message. The log may lie on the disk that is full: then nothing more is written there, or the attempt at
    the process's end would change its exit code."""
    try:
        print(message, file=sys.stderr)
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(null, stream)
        os.close(null)
