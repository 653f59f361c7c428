"""Ranks agree to stop: at places that all ranks pass together, each says whether it was asked to stop; if one was, all
stop.

Also reports ranks that hang: each such place is a sign of life, and after a long time without one the stacks of all
threads are written to a file.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ds_rag.runtime import collectives, stop_signals
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import RankError
from ds_rag.runtime.stop_signals import Stopped

LOST = ("timed out", "connection closed", "connection reset", "socket", "gloo", "nccl", "peer")


def join_ranks(run: Path, minutes: float, console: Console) -> torch.device:
    """Joins the other ranks and returns this rank's device. Raises Stopped if asked to stop while waiting, and
    RankError if they do not come."""
    say = console.say if console.speaks else collectives.say_on_standard_error
    try:
        device = collectives.start(minutes, say=say, look=lambda: stop_signals.raise_if_asked(run))
        collectives.barrier()
    except RuntimeError as error:
        raise lost(error, "the start") or error from error
    return device


class Halt:
    """`check` is the safe place to stop. operation: what the run is doing, for messages about its end.

    seconds: after so long without a sign of life, the stack of each thread is written to RUN/stacks-rankR.txt,
    repeatedly.
    """

    def __init__(self, folder: Path, device: torch.device, seconds: float):
        self.folder, self.device, self.seconds = folder, device, seconds
        self.operation, self.reason = "start", ""
        self.stacks: Any = (folder / f"stacks-rank{collectives.rank()}.txt").open("a", encoding="utf-8")
        self.begin("start")

    def begin(self, operation: str) -> None:
        """Gives a sign of life, and names the next operation."""
        self.operation = operation
        faulthandler.cancel_dump_traceback_later()
        faulthandler.dump_traceback_later(self.seconds, repeat=True, file=self.stacks)

    def asked(self) -> bool:
        """Has any rank been asked to stop? A collective; `reason` then says how."""
        mine = stop_signals.wish(self.folder)
        if not collectives.all_max({"stop": float(mine is not None)}, self.device)["stop"]:
            return False
        said = [reason for reason in collectives.gather_objects(mine) if reason]
        self.reason = said[0]
        return True

    def check(self) -> None:
        """Raises Stopped on all ranks if any was asked to stop. A collective."""
        self.begin(self.operation)
        if self.asked():
            raise Stopped(self.reason)

    def lost(self, error: RuntimeError) -> RankError | None:
        return lost(error, self.operation, self.folder)

    def close(self) -> None:
        """Stops watching, and removes the file if it has no stacks."""
        faulthandler.cancel_dump_traceback_later()
        self.stacks.close()
        path = Path(self.stacks.name)
        if path.exists() and not path.stat().st_size:
            path.unlink()


def lost(error: RuntimeError, operation: str, run: Path | None = None) -> RankError | None:
    """The error for a collective that did not finish, or None if `error` is a different one. run: the folder of a
    training run."""
    if not any(word in str(error).lower() for word in LOST) or collectives.world() == 1:
        return None
    logs = f"{run}/run*.log and stacks-rank*.txt say what the others did; --resume auto goes on"
    return RankError(
        f"rank {collectives.rank()} waited in vain for another rank, in: {operation}",
        found=str(error).splitlines()[0] if str(error) else type(error).__name__,
        expected="all ranks alive and at the same place",
        fix=logs if run else "see what the others say, then again",
    )


@contextmanager
def naming(operation: str) -> Iterator[None]:
    """For commands without a run's folder: a time-out inside the block names the operation. Raises RankError."""
    now = [operation]
    stop_signals.agree_by(None, lambda name: now.append(name))
    try:
        yield
    except RuntimeError as error:
        raise lost(error, now[-1]) or error from error
    finally:
        stop_signals.agree_by(None)
