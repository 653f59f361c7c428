"""Console output of a command: lines, tables, progress."""

from __future__ import annotations

import sys
import textwrap
import time
from typing import IO

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from ds_rag.runtime.credentials import one_line, printable
from ds_rag.runtime.standard_streams import guarded

QUIET_LINE_SECONDS = 10.0  # without a terminal, seconds between two lines of progress


class Console:
    """Prints lines, tables, and progress with rate and time left, on rank 0. On other ranks it prints nothing."""

    def __init__(self, stream: IO[str] | None = None, speaks: bool = True):
        out = guarded(stream or sys.stdout)
        self.rich = RichConsole(file=out, width=None if out.isatty() else 110, quiet=not speaks, highlight=False)
        self.speaks = speaks

    def say(self, text: str, style: str | None = None, lines: bool = False) -> None:
        """Prints text literally: brackets and control codes in data are not interpreted, and line ends in data are
        replaced. lines: the line ends in the text are the program's own, and are kept."""
        self.rich.print(escape(printable(text) if lines else one_line(text)), style=style, soft_wrap=True)

    def block(self, text: str, indent: int) -> None:
        """Prints a text of data as a paragraph of whole words, each line with a margin of `indent` blanks."""
        margin = " " * indent
        width = max(indent + 20, self.rich.width)
        lines = textwrap.fill(one_line(text), width, initial_indent=margin, subsequent_indent=margin)
        self.rich.print(escape(lines), soft_wrap=True)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        table = Table(title=title, title_justify="left")
        for n, name in enumerate(columns):
            table.add_column(name, justify="left" if n == 0 else "right")
        for row in rows:
            table.add_row(*(escape(one_line(cell)) for cell in row))
        self.rich.print(table)

    def progress(self, total: int, what: str, done: int = 0, unit: str = "step") -> Meter:
        return Meter(self, total, what, done, unit)


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
                BarColumn(bar_width=8 if console.rich.width < 100 else 24),  # the full line fits into 80 columns
                TextColumn("{task.description}"),
                console=console.rich,
                transient=True,
                redirect_stdout=False,  # otherwise output of libraries reaches the terminal while a bar is shown
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
        """`note` is text shown beside the bar, such as the loss."""
        self.done += by
        self.note = self.note if note is None else note
        now = time.monotonic()
        if self.bar:
            self.bar.update(self.task, completed=self.done, description=escape(self.line(now)))
        elif now - self.last_line > QUIET_LINE_SECONDS:
            self.last_line = now
            self.console.say(self.line(now))

    def line(self, now: float) -> str:
        """The line: what, how far, how fast, time left, and the note."""
        rate = (self.done - self.first) / max(now - self.begin, 1e-9)
        left = duration((self.total - self.done) / max(rate, 1e-9))
        return f"{self.what} {self.done}/{self.total}  {rate:.1f}{self.unit}/s  {left} left  {self.note}".rstrip()


def duration(seconds: float) -> str:
    """The duration in a readable unit."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
