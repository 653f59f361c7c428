"""Work beside the main thread: a function in a thread, with its result or error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Cancelled(Exception):
    """Raised in the thread to end it, when the run ends."""


class Background:
    """A function in a thread; an exception that it raises is kept in `error`."""

    def __init__(self, work: Callable[[], Any]):
        self.value: Any = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(work,), name="index stage")
        self.thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self.value = work()
        except BaseException as error:
            self.error = error

    def join(self, seconds: float | None = None) -> None:
        """Waits until it is done, or for that many seconds."""
        self.thread.join(seconds)

    @property
    def running(self) -> bool:
        return self.thread.is_alive()
