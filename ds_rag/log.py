"""The console, the run's log file and its metrics. From `capture()` on, the console is ours alone.

Libraries write warnings and INFO lines to standard output and error, some from C++. `capture()` points both
file descriptors at `RUN/run.log` (one file a rank) and keeps the real terminal for `Console`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
)
from rich.table import Table

from ds_rag.errors import RankError, UserError
from ds_rag.masking import masked
from ds_rag.places import NO_WAY, no_way

Item = TypeVar("Item")
INDEX_STAGE = ("refresh", "candidates", "eval")  # kinds of lines
QUIET_LINE_SECONDS = 10.0  # without a terminal, how often progress is a line
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
_terminal_error: IO[str] | None = None  # the real standard error, once `capture()` has sent 2 to the log
_log_file: Path | None = None  # where 1 and 2 point since then


class Console:
    """Rank 0's voice: lines, tables, progress with rate and time left. Other ranks are silent."""

    def __init__(self, stream: IO[str] | None = None, speaks: bool = True):
        width = None if (stream or sys.stdout).isatty() else 110
        self.rich = RichConsole(file=stream or sys.stdout, width=width, quiet=not speaks, highlight=False)
        self.speaks = speaks

    def say(self, text: str, style: str | None = None) -> None:
        """Prints text as it is: brackets and control codes in data are not markup."""
        self.rich.print(escape(printable(text)), style=style, soft_wrap=True)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        table = Table(title=title, title_justify="left")
        for n, name in enumerate(columns):
            table.add_column(name, justify="left" if n == 0 else "right")
        for row in rows:
            table.add_row(*(escape(printable(cell)) for cell in row))
        self.rich.print(table)

    def progress(self, total: int, what: str, done: int = 0, unit: str = "step") -> Meter:
        return Meter(self, total, what, done, unit)

    def track(self, items: Iterable[Item], total: int, what: str, unit: str = "text") -> Iterator[Item]:
        """Yields the items, showing progress by one each."""
        with self.progress(total, what, unit=unit) as meter:
            for item in items:
                yield item
                meter.advance(1)


class Meter:
    """A progress bar on a terminal; a line every ten seconds elsewhere."""

    def __init__(self, console: Console, total: int, what: str, done: int, unit: str):
        self.console, self.total, self.what, self.done = console, total, what, done
        self.unit = f" {unit}" if unit else ""
        self.begin = self.last_line = time.monotonic()
        self.first, self.note = done, ""
        self.bar: Progress | None = None
        if console.rich.is_terminal and console.speaks:
            self.bar = Progress(
                BarColumn(bar_width=8 if console.rich.width < 100 else 24),  # 80 columns hold the whole line
                TextColumn("{task.description}"),
                console=console.rich,
                transient=True,
                redirect_stdout=False,  # else the libraries' lines reach the terminal while a bar is live
                redirect_stderr=False,
            )
            self.task = self.bar.add_task(what, total=total, completed=done)

    def __enter__(self) -> Meter:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, by: int, note: str | None = None) -> None:
        """`note` is the live text beside the bar, such as the loss."""
        self.done += by
        self.note = self.note if note is None else note
        now = time.monotonic()
        if self.bar:
            self.bar.update(self.task, completed=self.done, description=escape(self.line(now)))
        elif now - self.last_line > QUIET_LINE_SECONDS:
            self.last_line = now
            self.console.say(self.line(now))

    def line(self, now: float) -> str:
        """What, how far, how fast, how long still, and the live text."""
        rate = (self.done - self.first) / max(now - self.begin, 1e-9)
        left = duration((self.total - self.done) / max(rate, 1e-9))
        return f"{self.what} {self.done}/{self.total}  {rate:.1f}{self.unit}/s  {left} left  {self.note}".rstrip()


def duration(seconds: float) -> str:
    """In the largest unit that still tells something."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Metrics:
    """`metrics.jsonl`: one JSON object a step or evaluation; on request to TensorBoard too. Rank 0 writes."""

    def __init__(
        self, folder: Path | None, report_to: str = "none", resumed_at: int | None = None, refreshed: int | None = None
    ):
        """resumed_at: lines of later steps are taken back, for they come again; None: a new run. refreshed: the last
        step whose index stage was done when that checkpoint was saved."""
        self.file = None
        if folder:
            kept = lines_up_to(folder / "metrics.jsonl", resumed_at, refreshed) if resumed_at is not None else []
            part = folder / "metrics.jsonl.tmp"
            part.write_text("".join(kept), encoding="utf-8")
            os.replace(part, folder / "metrics.jsonl")
            self.file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self.board = None
        if folder and report_to == "tensorboard":
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError("--report_to tensorboard: not installed", fix="pip install tensorboard") from None
            self.board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        if not self.file:
            return
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        try:
            self.file.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
            self.file.flush()
        except OSError as error:  # says nothing of its file by itself
            raise OSError(error.errno, error.strerror, self.file.name) from None
        if self.board:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self.board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        if self.file:
            self.file.close()
        if self.board:
            self.board.close()


def lines_up_to(file: Path, step: int, refreshed: int | None = None) -> list[str]:
    """Lines of steps up to this one, without this one's index stage where that is done again; one that a crash has cut
    short is none."""
    again = INDEX_STAGE if refreshed is not None and refreshed < step else ()
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []:
        try:
            entry = json.loads(line)
            if entry["step"] <= step and line.endswith("\n") and not (entry["step"] == step and entry["kind"] in again):
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept


def printable(text: str) -> str:
    """Without control characters, which a passage could use to write over the terminal, and without credentials."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in masked(text))


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


def memory_gb() -> float:
    """Peak memory of this process so far, in GB: of the GPU where there is one, else resident."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def capture(folder: Path, rank: int) -> Console:
    """Sends everything but our own console to `folder/run.log` (`run-rankN.log` for others).

    Our lines go to the real standard output, tracebacks and user errors to the real standard error.
    """
    global _terminal_error
    sys.stdout.flush()
    sys.stderr.flush()
    terminal, _terminal_error = (os.fdopen(os.dup(stream), "w", encoding="utf-8", buffering=1) for stream in (1, 2))
    redirect(folder, rank)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.captureWarnings(True)
    console = Console(terminal, speaks=rank == 0)
    loud = Console(_terminal_error)

    def report(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        into_log(printable("".join(traceback.format_exception(kind, error, trace))))
        if not issubclass(kind, KeyboardInterrupt):
            loud.say("".join(traceback.format_exception(kind, error, trace)).rstrip())
        loud.say(f"rank {rank} stopped: {kind.__name__}; the libraries' messages are in {_log_file}")

    sys.excepthook = report
    return console


def run_command(body: Callable[[], int | None], debug: bool = False) -> int:
    """Runs a command's body; a UserError becomes its exit code and, on rank 0, a message on the terminal.

    Every rank meets the same mistake, so one speaks; the others' messages are in their logs. A rank's own trouble it
    tells itself: rank 0 may be the one that is gone. A full or broken disk is such trouble.
    """
    try:
        try:
            return body() or 0
        except OSError as error:
            if not debug and error.errno in NO_WAY and error.filename is not None:
                raise no_way(error) from None
            if debug or error.errno not in OF_THE_DISK:
                raise
            raise of_the_disk(error) from None
    except UserError as error:
        if debug:
            raise
        message = printable(f"error: {error}")
        if _terminal_error:
            into_log(message)
        if os.environ.get("RANK", "0") == "0" or isinstance(error, RankError):
            print(message, file=_terminal_error or sys.stderr)
        return error.code


def of_the_disk(error: OSError) -> RankError:
    """In words; the log's folder stands for a file that the error does not name."""
    place = error.filename or (_log_file.parent if _log_file else "a file")
    return RankError(
        f"{place}: the disk does not take what is written",
        found=error.strerror,
        expected="room, and a disk that can be written",
        fix="see to that, then again: training goes on with --resume auto, where it has saved a checkpoint",
    )


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
