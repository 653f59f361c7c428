"""Requests to stop: signals, a file, the end of the launcher. Imports no torch, so that handlers are set before the
slow imports.

A handler only records the request: ranks get signals at different times, and a collective inside a handler would
collide with the training step of another rank. At places that all ranks pass together they ask each other
(stop_agreement.py), and all stop at the same place.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ds_rag.runtime.atomic_files import PARTIAL, write_complete

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
STOP_FILE = "STOP"  # a file in the run's folder
EXIT_CODE = 75  # EX_TEMPFAIL: run me again
EXIT_FILE = "exit.json"
_wish: str | None = None
_launchers: list[int] = []
_agreement: Callable[[], None] | None = None
_name: Callable[[str], None] | None = None


class Stopped(Exception):
    """All ranks have agreed to stop; raised at the same place on each."""


def watch() -> None:
    """From now on a signal is a request to stop at the next safe place. Further signals change nothing.

    A SIGHUP that is ignored already (`nohup`) stays ignored, except under torchrun, which ends its ranks at a SIGHUP
    anyway.
    """
    global _wish, _launchers
    # Without a launcher the parent is a shell, whose end means nothing (nohup).
    _wish, _launchers = None, launchers() if "LOCAL_RANK" in os.environ else []

    def note(number: int, frame: Any) -> None:
        global _wish
        _wish = _wish or signal.Signals(number).name

    kept = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and "TORCHELASTIC_RUN_ID" not in os.environ
    for number in SIGNALS:
        if number != signal.SIGHUP or not kept:
            signal.signal(number, note)


def agree_by(check: Callable[[], None] | None, name: Callable[[str], None] | None = None) -> None:
    """Sets what `safe_place` and `phase` do: the agreement of the ranks and their sign of life (stop_agreement.py), or
    nothing."""
    global _agreement, _name
    _agreement, _name = check, name


def safe_place() -> None:
    """To be called where all ranks pass together and no work is half done. Raises Stopped on all ranks if one was asked
    to stop."""
    if _agreement is not None:
        _agreement()


def phase(operation: str) -> None:
    """To be called where all ranks begin an operation together: messages about a time-out from here on name it."""
    if _name is not None:
        _name(operation)


def raise_if_asked(folder: Path) -> None:
    """Raises Stopped where this process alone was asked to stop: while the ranks have not met yet."""
    if reason := wish(folder):
        raise Stopped(reason)


def wish(folder: Path) -> str | None:
    """The reason why this process should stop, or None: a signal, the file STOP in the run's folder, or the end of the
    launcher, which would leave its ranks behind as orphans."""
    if _wish:
        return _wish
    if (folder / STOP_FILE).exists():
        return f"the file {STOP_FILE}"
    gone = _launchers and (launchers() != _launchers or adopted(_launchers))
    return "the launcher's end" if gone else None


def launchers() -> list[int]:
    """The processes above this one whose end is a request to stop: its parent, and the upper of the two launchers of
    `deepspeed`, which a signal kills without the lower one noticing."""
    parent = os.getppid()
    try:
        lower = b"deepspeed.launcher.launch" in Path(f"/proc/{parent}/cmdline").read_bytes()
        status = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8") if lower else ""
    except OSError:  # it has just ended, or the system has no /proc
        return [parent]
    return [parent, *([int(status.rpartition(")")[2].split()[1])] if status else [])]


def adopted(above: list[int]) -> bool:
    """Had the upper launcher of `deepspeed` ended before this process looked? The lower one imports for seconds before
    it starts any rank. It is then a child of process 1 but not in its session, unlike processes that process 1 started
    itself."""
    try:
        return len(above) == 2 and above[1] == 1 and os.getsid(above[0]) != os.getsid(1)
    except OSError:
        return False


def leave_word(folder: Path, reason: str, step: int | None) -> None:
    """Writes `exit.json`: why the run stopped early, and that it can simply be started again."""
    word: dict[str, Any] = {"reason": reason, "step": step, "requeue": True, "code": EXIT_CODE}
    word["time"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    write_complete(folder / EXIT_FILE, json.dumps(word, indent=1) + "\n")


def last_word(folder: Path) -> dict[str, Any] | None:
    """The content of `exit.json`, or None."""
    try:
        word = json.loads((folder / EXIT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return word if isinstance(word, dict) and {"reason", "step"} <= word.keys() else None


def take_back(folder: Path) -> None:
    """Removes the file STOP once the run has stopped: otherwise the next start would stop at once. (What cannot be
    removed, such as a folder of that name, is refused at the next start.)"""
    with suppress(OSError):
        (folder / STOP_FILE).unlink(missing_ok=True)


def forget(folder: Path) -> None:
    """At a start: what an earlier one was told does not count for this one."""
    for name in (EXIT_FILE, EXIT_FILE + PARTIAL, STOP_FILE):
        (folder / name).unlink(missing_ok=True)
