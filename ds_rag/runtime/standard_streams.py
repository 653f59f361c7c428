"""Standard output and error that never fail. Their reader may go away (`| head`, a closed terminal), their disk may be
full, they may be closed from the start, or have an encoding that lacks characters: none of this ends the work.
"""

from __future__ import annotations

import locale
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, cast

QUIET = BrokenPipeError  # a reader that has read enough is not reported


class Terminal:
    """A text stream whose writes never raise: after the first failure it writes nothing. Other methods are those of the
    stream.

    told: called once, with the first failure.
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
        except BlockingIOError:  # only slow: the rest is written with the next line
            pass
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self.failure = error
            with suppress(OSError, ValueError):
                point_nowhere(self.stream.fileno())  # otherwise buffered text would fail again when the process ends
            self.told(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guarded(stream: IO[str] | None, told: Callable[[Exception], None] = lambda error: None) -> IO[str]:
    """The stream as a Terminal, or unchanged if it is one. None, which Python uses for a stream closed at the start,
    becomes a stream that discards everything."""
    if isinstance(stream, Terminal):
        return cast(IO[str], stream)
    return cast(IO[str], Terminal(stream or open(os.devnull, "w", encoding="utf-8"), told))


def point_nowhere(descriptor: int) -> None:
    """Discards everything written to the descriptor from now on."""
    null = os.open(os.devnull, os.O_RDWR)
    if null == descriptor:
        os.set_inheritable(null, True)
        return
    os.dup2(null, descriptor)
    os.close(null)


def guard_standard_streams() -> None:
    """To be called before any file is opened: a file that gets the number of a closed standard stream would receive
    what is written to that stream."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            point_nowhere(number)
    for name in ("stdout", "stderr"):
        told = print_error if name == "stdout" else lambda error: None
        setattr(sys, name, guarded(getattr(sys, name), told))


def read_utf8() -> None:
    """Makes UTF-8 the default encoding in every locale, for libraries that open text files without naming an
    encoding."""
    if locale.getencoding().lower().replace("-", "") == "utf8":
        return
    for name in ("C.UTF-8", "en_US.UTF-8"):
        with suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, name)
            return


def print_error(error: Exception) -> None:
    if not isinstance(error, QUIET):
        print(f"note: standard output takes nothing more ({error}); the work goes on", file=sys.stderr)


def flush_standard_streams() -> None:
    """To be called at the end, while a failure can still be handled: later it would change the exit code of the
    process."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
