"""Long work of one rank while the others wait for it: they meet every few seconds meanwhile.

So no collective outlasts `--collective_timeout`, however long the work takes; each meeting is a sign of life, and a
wish to stop is heard at it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ds_rag.runtime import collectives, stop_signals
from ds_rag.runtime.background import Background, Cancelled
from ds_rag.runtime.errors import RunError

T = TypeVar("T")
Pause = Callable[[], None]  # called between two parts of the work; raises to end it


def together(work: Callable[[Pause], T], what: str) -> T:
    """What this rank's `work` gives, once every rank's is done. All ranks call it together; it uses no collective.

    It runs in a thread of its own, or, in one process alone, where it is called. Raises on all ranks where one failed:
    its own error there, RunError elsewhere. Raises Stopped on all where one was asked to stop: then the work ends at
    its next pause, which is waited for.
    """
    if collectives.world() == 1:
        return work(stop_signals.safe_place)
    cancelled = threading.Event()

    def pause() -> None:
        if cancelled.is_set():
            raise Cancelled

    job = Background(lambda: work(pause))
    try:
        while meet(job, what, collectives.beat()):
            stop_signals.safe_place()
    except BaseException:
        cancelled.set()
        job.join()
        raise
    value: T = job.value
    return value


def meet(job: Background, what: str, seconds: float) -> bool:
    """One meeting, a small reduction: does any rank's job still run? Each comes when its own is done, or after so many
    seconds. Raises as `together`."""
    job.join(seconds)
    running, error = job.running, job.error  # in this order: one that does not run has all its error
    found = collectives.all_max({"running": float(running), "failed": float(error is not None)}, collectives.device())
    if error is not None:
        raise error
    if found["failed"]:
        raise RunError(f"{what} failed on another rank; its log says why")
    return found["running"] > 0
