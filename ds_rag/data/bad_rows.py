"""What is wrong with the rows of a file, gathered so that a user sees it at once, and what becomes of such rows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ds_rag.data.columns import unused_note
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

LOG = logging.getLogger("ds_rag.data")
MAX_LISTED = 20
WARNING = "warning: "  # how a notice begins that the user should act on
MINE = "mine --data"  # how messages call the flag of rows that are mined for


@dataclass
class Reading:
    """How bad rows are met, and what there is to tell of all that was read.

    skip: bad rows are left out, counted and named once, instead of being an error. notices: for the console, see
    `say_notices`.
    """

    skip: bool = False
    notices: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Once: a BEIR folder's corpus is read for its rows and for itself."""
        if text not in self.notices:
            self.notices.append(text)
            LOG.info(text)


@dataclass
class Faults:
    """What is wrong in one input. most: rows that are wanted of it; None: all."""

    flag: str
    path: str
    reading: Reading = field(default_factory=Reading)
    most: int | None = None
    before: int = 0  # added to line numbers, so that the files of a folder stay in order
    found: list[tuple[int, str]] = field(default_factory=list)
    places: set[str] = field(default_factory=set)  # "file:line" of all of them
    merged: int = 0  # rows that were there before, with the same id and content
    broken: bool = False  # what follows a fault cannot be told apart, so it is not one row that is bad

    @property
    def source(self) -> str:
        return f"{self.flag}: {self.path}"

    @property
    def of_training(self) -> bool:
        """Rows to train on: of several splits that of training is meant."""
        return self.flag in ("--train_data", MINE)

    def add(self, number: int, where: str, message: str, broken: bool = False) -> None:
        self.found.append((self.before + number, f"{where}: {message}"))
        self.places.add(where)
        self.broken |= broken

    def note(self, text: str, warning: bool = False) -> None:
        self.reading.note(f"{WARNING if warning else ''}{self.source}: {text}")

    def note_unused(self, columns: Iterable[str]) -> None:
        """Names what the file has and nothing reads, for it may have been meant."""
        if unused := list(columns):
            self.note(*unused_note(unused))

    @contextmanager
    def first(self) -> Iterator[None]:
        """A column error gives way to these faults: bytes that cannot be read may be its cause."""
        try:
            yield
        except UserError:
            self.raise_any()
            raise

    def settle(self, good: int) -> None:
        """The end of reading, which left `good` rows: raises what was found, or where bad rows are skipped counts it.

        Skipped is not all there is, nor what may hide good rows.
        """
        if self.found and self.reading.skip and good and not self.broken:
            many = len(self.places)
            first = self.listed(1)[0]
            self.note(f"{many} bad {'row is' if many == 1 else 'rows are'} left out (--on_bad_row skip): {first}")
            return
        self.raise_any()

    def listed(self, count: int = MAX_LISTED) -> list[str]:
        """The first of them in file order."""
        return [message for _, message in sorted(self.found, key=lambda item: item[0])[:count]]

    def raise_any(self) -> None:
        """UserError with the first faults in file order and their total; nothing if there is none."""
        if not self.found:
            return
        total = len(self.found)
        more = f", the first {MAX_LISTED}" if total > MAX_LISTED else ""
        lines = [f"{self.source}: {total} bad {'place' if total == 1 else 'places'}{more}:"]
        skip = "" if self.broken or self.reading.skip else ", or leave such rows out with --on_bad_row skip"
        raise UserError(
            "\n".join(lines + [f"  {message}" for message in self.listed()]),
            fix=f"correct or remove what is listed{skip}",
        )


def say_notices(notices: Iterable[str], console: Console) -> None:
    """Notes, and more loudly warnings."""
    for notice in notices:
        loud = notice.startswith(WARNING)
        console.say(notice if loud else f"note: {notice}", style="bold yellow" if loud else "yellow")


class Bad(ValueError):
    """A value that cannot be used; becomes one entry of Faults."""
