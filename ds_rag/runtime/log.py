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
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ds_rag.runtime.console import Console as Console
from ds_rag.runtime.console import duration as duration
from ds_rag.runtime.credentials import printable
from ds_rag.runtime.errors import LaunchError, RankError, UserError
from ds_rag.runtime.output_places import NO_WAY, no_way
from ds_rag.runtime.standard_streams import guarded

INDEX_STAGE = ("refresh", "candidates", "eval")  # kinds of lines
INTERRUPTED = 128 + signal.SIGINT  # a shell's exit code for it
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
_terminal_error: IO[str] | None = None  # the real standard error, once `capture()` has sent 2 to the log
_log_file: Path | None = None  # where 1 and 2 point since then


class Metrics:
    """`metrics.jsonl`: one JSON object a step or evaluation; on request to TensorBoard too. Rank 0 writes."""

    def __init__(
        self,
        folder: Path | None,
        report_to: str = "none",
        resumed_at: int | None = None,
        refreshed: int | None = None,
        say: Callable[[str], None] = lambda text: None,
    ):
        """resumed_at: lines of later steps are taken back, for they come again; None: a new run. refreshed: the last
        step whose index stage was done when that checkpoint was saved. say: told where lines are damaged; they are
        kept, with all the others, in a file beside."""
        self.file = None
        if folder:
            path = folder / "metrics.jsonl"
            kept, unread = lines_up_to(path, resumed_at, refreshed) if resumed_at is not None else ([], 0)
            if unread:
                names = (path.with_name(f"{path.name}.damaged-{n}") for n in range(1, 1 << 30))
                aside = next(name for name in names if not name.exists())
                os.replace(path, aside)
                say(f"warning: {unread} lines of {path} are damaged; it is kept as {aside.name}")
            part = folder / "metrics.jsonl.tmp"
            part.write_text("".join(kept), encoding="utf-8")
            os.replace(part, path)
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


def lines_up_to(file: Path, step: int, refreshed: int | None = None) -> tuple[list[str], int]:
    """Lines of steps up to this one, without this one's index stage where that is done again; and how many could not be
    read, but for a last one that a crash has cut short."""
    again = INDEX_STAGE if refreshed is not None and refreshed < step else ()
    kept, unread = [], 0
    for line in file.read_bytes().splitlines(keepends=True) if file.exists() else []:
        if not line.endswith(b"\n"):
            continue
        try:
            entry = json.loads(line.decode("utf-8"))
            if entry["step"] <= step and not (entry["step"] == step and entry["kind"] in again):
                kept.append(line.decode("utf-8"))
        except (ValueError, KeyError, TypeError, RecursionError):
            unread += 1
    return kept, unread


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


def copy_of(descriptor: int) -> IO[str]:
    """The console as it is now, in its own encoding. When it takes nothing more, the log says so."""
    encoding = (sys.stdout, sys.stderr)[descriptor - 1].encoding or "utf-8"
    stream = os.fdopen(os.dup(descriptor), "w", encoding=encoding, buffering=1)
    return guarded(stream, lambda error: into_log(f"the console takes nothing more ({error}); the work goes on"))


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
            if debug or error.errno not in (*OF_THE_DISK, *TOO_MANY_FILES):
                raise
            raise (of_the_disk if error.errno in OF_THE_DISK else of_open_files)(error) from None
    except UserError as error:
        if debug:
            raise
        tell(f"error: {error}", by_all=isinstance(error, (RankError, LaunchError)))
        return error.code
    except KeyboardInterrupt:
        if debug:
            raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends already
        tell("stopped (Ctrl-C)")
        return INTERRUPTED


def tell(text: str, by_all: bool = False) -> None:
    """A command's last word, on standard error: rank 0's, or every rank's."""
    message = printable(text)
    if _terminal_error:
        into_log(message)
    if by_all or os.environ.get("RANK", "0") == "0":
        print(message, file=_terminal_error or guarded(sys.stderr))


def of_the_disk(error: OSError) -> RankError:
    """In words; the log's folder stands for a file that the error does not name."""
    place = error.filename or (_log_file.parent if _log_file else "a file")
    return RankError(
        f"{place}: the disk does not take what is written",
        found=error.strerror,
        expected="room, and a disk that can be written",
        fix="see to that, then again: training goes on with --resume auto, where it has saved a checkpoint",
    )


def of_open_files(error: OSError) -> RankError:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return RankError(
        f"{error.filename or 'a file'}: cannot be opened beside the others",
        found=f"{error.strerror}; `ulimit -n` allows {limit}",
        expected="1024, and 4 more for each rank",
        fix="ulimit -n 4096, then again",
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
