"""Console output of a command: lines, tables, progress."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from typing import IO, Literal

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from ds_rag.runtime.credentials import one_line, printable
from ds_rag.runtime.standard_streams import guarded
from ds_rag.runtime.wrapping import wrapped

BORDER = 3  # cells of the terminal that a column of a table takes beside its content
WIDTH = 110  # characters of a line without a terminal
COLUMNS = "DS_RAG_COLUMNS"  # variable with another width: that of the terminal of a process that shows our output
EMPTY = "(empty)"  # in place of an answer without a word
QUIET_LINE_SECONDS = 10.0  # without a terminal, seconds between two lines of progress


class Console:
    """Prints lines, tables, and progress with rate and time left, on rank 0. On other ranks it prints nothing."""

    def __init__(self, stream: IO[str] | None = None, speaks: bool = True):
        out = guarded(stream or sys.stdout)
        self.narrow = out.isatty() or COLUMNS in os.environ  # lines have to fit
        width = None if out.isatty() else int(os.environ.get(COLUMNS, WIDTH))
        self.rich = RichConsole(file=out, width=width, quiet=not speaks, highlight=False)
        self.speaks = speaks

    def say(self, text: str, style: str | None = None, lines: bool = False) -> None:
        """Prints text literally: brackets and control codes in data are not interpreted, and line ends in data are
        replaced. lines: the line ends in the text are the program's own, and the lines are kept as they are. On a
        terminal other lines are broken between words; elsewhere they are not, so that they can be searched."""
        text = printable(text) if lines else self.fitted(one_line(text))
        self.rich.print(escape(text), style=style, soft_wrap=True)

    def fitted(self, text: str) -> str:
        return wrapped(text, self.rich.width) if self.narrow else text

    def command(self, label: str, command: str, purpose: str = "") -> None:
        """Prints a command to copy, which is never broken; what it is for stands below it where there is no room."""
        line = f"{label:10} {one_line(command)}"
        beside = f"{line}   ({one_line(purpose)})" if purpose else line
        if not self.narrow or cell_len(beside) <= self.rich.width:
            line, purpose = beside, ""
        self.rich.print(escape(line), soft_wrap=True)
        if purpose:
            self.block(f"({purpose})", 13)

    def block(self, text: str, indent: int) -> None:
        """Prints a text of data as a paragraph of whole words, each line with a margin of `indent` blanks."""
        margin = " " * indent
        width = max(indent + 20, self.rich.width)
        lines = textwrap.fill(one_line(text), width, initial_indent=margin, subsequent_indent=margin)
        self.rich.print(escape(lines), soft_wrap=True)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Figures stand to the right, texts to the left. No word and no figure is cut: a table that is too wide becomes
        several, each with the first column."""
        cells = [[one_line(cell) for cell in row] for row in rows]
        texts = [[name, *(row[n] for row in cells)] for n, name in enumerate(columns)]
        most = max(1, (self.rich.width - 1) // 2 - BORDER)  # so that any two columns fit; longer words are folded
        needed = [min(longest_word(*column), most) for column in texts]
        natural = [max(map(cell_len, column)) for column in texts]
        for number, part in enumerate(parts_of(needed, self.rich.width)):
            table = Table(title=title if number == 0 else None, title_justify="left")
            widths = widths_of([needed[n] for n in part], [natural[n] for n in part], self.rich.width)
            for n, width in zip(part, widths, strict=True):
                figures = n > 0 and all(is_figure(row[n]) for row in cells)
                side: Literal["left", "right"] = "right" if figures else "left"
                table.add_column(escape(columns[n]), justify=side, width=max(1, width), overflow="fold")
            for row in cells:
                table.add_row(*(escape(row[n]) for n in part))
            self.rich.print(table)

    def progress(self, total: int, what: str, done: int = 0, unit: str = "step") -> Meter:
        return Meter(self, total, what, done, unit)


def longest_word(*texts: str) -> int:
    """Cells of a terminal that the longest word of the texts takes."""
    return max((cell_len(word) for text in texts for word in text.split()), default=0)


def is_figure(cell: str) -> bool:
    """A cell that stands to the right: a figure, with its sign and unit, or a mark such as "-"; no sentence."""
    return len(cell.split()) <= 3 and (not any(c.isalpha() for c in cell[:1]) or len(cell) <= 4)


def parts_of(needed: list[int], width: int) -> list[list[int]]:
    """The columns of each table that a table is divided into, so that each fits into `width`. needed: the cells of the
    terminal that each column takes at least."""
    parts: list[list[int]] = [[0]]
    for n in range(1, len(needed)):
        columns = [*parts[-1], n]
        if len(parts[-1]) > 1 and sum(needed[c] + BORDER for c in columns) + 1 > width:
            columns = [0, n]
            parts.append(columns)
        parts[-1] = columns
    return parts


def widths_of(needed: list[int], natural: list[int], width: int) -> list[int]:
    """The width of each column: what it needs, and of the room that is left as much as it can use, in turn."""
    widths, room = list(needed), width - 1 - sum(n + BORDER for n in needed)
    while room > 0 and (short := [n for n, wide in enumerate(widths) if wide < natural[n]]):
        for n in short[:room]:
            widths[n] += 1
        room -= len(short[:room])
    return widths


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
        how = f"{rate:.1f}{self.unit}/s  {duration((self.total - self.done) / rate)} left  " if rate else ""
        return f"{self.what} {self.done}/{self.total}  {how}{self.note}".rstrip()


def duration(seconds: float) -> str:
    """The duration in a readable unit."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
