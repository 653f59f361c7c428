"""Long work of one rank while the others wait: all ranks meet every few seconds.

So no collective exceeds `--collective_timeout`, however long the work takes. Each meeting is a sign of life, and a
request to stop is noticed there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ds_rag.runtime import collectives, stop_signals
from ds_rag.runtime.background import Background, Cancelled
from ds_rag.runtime.errors import RunError

T = TypeVar("T")
Pause = Callable[[], None]  # called between two parts of the work; may raise to end it


def together(work: Callable[[Pause], T], what: str) -> T:
    """The result of this rank's `work`, once that of every rank is done. To be called on all ranks; `work` must use no
    collective.

    `work` runs in a thread, or, with one process, in the calling thread. If one rank fails, it raises its own error
    there, and RunError on the others. If one rank was asked to stop, it raises Stopped on all, after the work has ended
    at its next pause.
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
    """One meeting, a small reduction: is the job of any rank still running? A rank joins when its own is done, or after
    that many seconds. Raises as `together`."""
    job.join(seconds)
    running, error = job.running, job.error  # in this order: once it is not running, its error is set
    found = collectives.all_max({"running": float(running), "failed": float(error is not None)}, collectives.device())
    if error is not None:
        raise error
    if found["failed"]:
        raise RunError(f"{what} failed on another rank; its log says why")
    return found["running"] > 0
