"""Standard output and error. Their reader may go away (`| head`, a terminal that is closed), their disk be full, they
may be closed from the start, or of an encoding that cannot say everything: none of this ends the work.
"""

from __future__ import annotations

import locale
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, cast

QUIET = BrokenPipeError  # a reader that has read enough is no trouble worth a word


class Terminal:
    """A text stream that never raises: after its first failure it is silent. Anything but writing is the stream's own.

    told: called once with that failure.
    """

    def __init__(self, stream: IO[str], told: Callable[[Exception], None] = lambda error: None):
        self.stream, self.told = stream, told
        self.failure: Exception | None = None

    def write(self, text: str) -> int:
        self._attempt(self._write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def isatty(self) -> bool:
        try:
            return self.stream.isatty()
        except (OSError, ValueError):
            return False

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
        except UnicodeEncodeError as error:
            self.stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))

    def _attempt(self, work: Callable[..., object], *args: str) -> None:
        if self.failure is not None:
            return
        try:
            work(*args)
        except BlockingIOError:  # only slow: what it did not take comes with the next line
            pass
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self.failure = error
            with suppress(OSError, ValueError):
                point_nowhere(self.stream.fileno())  # or what is still kept would fail again at the process's end
            self.told(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guarded(stream: IO[str] | None, told: Callable[[Exception], None] = lambda error: None) -> IO[str]:
    """The stream as a Terminal; one that is a Terminal already, as it is. None, which Python has for one closed
    at the start, is a stream to nowhere."""
    if isinstance(stream, Terminal):
        return cast(IO[str], stream)
    return cast(IO[str], Terminal(stream or open(os.devnull, "w", encoding="utf-8"), told))


def point_nowhere(descriptor: int) -> None:
    """What is written there from now on is dropped."""
    null = os.open(os.devnull, os.O_RDWR)
    if null == descriptor:
        os.set_inheritable(null, True)
        return
    os.dup2(null, descriptor)
    os.close(null)


def guard_standard_streams() -> None:
    """To be called before any file is opened: one that gets the number of a closed standard stream would be written
    into by whoever writes to that stream."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            point_nowhere(number)
    for name in ("stdout", "stderr"):
        told = say_on_standard_error if name == "stdout" else lambda error: None
        setattr(sys, name, guarded(getattr(sys, name), told))


def read_utf8() -> None:
    """What libraries open as text without naming an encoding, their own files among it, is UTF-8 in every locale."""
    if locale.getencoding().lower().replace("-", "") == "utf8":
        return
    for name in ("C.UTF-8", "en_US.UTF-8"):
        with suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, name)
            return


def say_on_standard_error(error: Exception) -> None:
    if not isinstance(error, QUIET):
        print(f"note: standard output takes nothing more ({error}); the work goes on", file=sys.stderr)


def flush_standard_streams() -> None:
    """At the end, while a failure can still be met: later it would change the process's exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
