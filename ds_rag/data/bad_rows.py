"""Bad rows of a file: collected, so that the user sees all of them at once; then skipped or raised as one error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ds_rag.data.columns import unused_note
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

LOG = logging.getLogger("ds_rag.data")
MAX_LISTED = 20
WARNING = "warning: "  # the beginning of a notice that the user should act on
MINE = "mine --data"  # the flag of the rows to mine negatives for, as messages name it


@dataclass
class Reading:
    """What to do with bad rows, and the notices of everything that was read.

    skip: bad rows are left out and counted, and the first is named, instead of raising an error. notices: for the
    console, see `say_notices`. scores: a teacher's scores of each training row's passages are needed; None: they are
    read where they fit. corpus_by_id: gives id -> passage of the corpus, for labels by id; None: there is no corpus.
    """

    skip: bool = False
    scores: bool | None = False
    corpus_by_id: Callable[[], Mapping[str, Any]] | None = None
    notices: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Adds a notice, unless it is there already: a BEIR folder's corpus is read twice, for its rows and as the
        corpus."""
        if text not in self.notices:
            self.notices.append(text)
            LOG.info(text)


@dataclass
class Faults:
    """The faults of one input. most: the number of rows to read from it; None: all."""

    flag: str
    path: str
    reading: Reading = field(default_factory=Reading)
    most: int | None = None
    split: str | None = None  # of a folder with several, the one that `FOLDER:SPLIT` names
    before: int = 0  # added to line numbers, so that the files of a folder stay in order
    found: list[tuple[int, str]] = field(default_factory=list)
    places: set[str] = field(default_factory=set)  # "file:line" of all of them
    merged: int = 0  # rows that repeat an earlier one, id and content
    unscored: list[str] = field(default_factory=list)  # rows whose scores were looked for, and why they are not read
    left_out: dict[str, list[str]] = field(default_factory=dict)  # why rows of other toolkits are not read -> where
    away: list[str] = field(default_factory=list)  # what was said about those
    broken: bool = False  # rows after a fault cannot be separated, so more than one row may be bad

    @property
    def source(self) -> str:
        return f"{self.flag}: {self.path}" + (f":{self.split}" if self.split else "")

    @property
    def of_training(self) -> bool:
        """Are these rows to train on? Then of several splits the training split is read."""
        return self.flag in ("--train_data", MINE)

    @property
    def need_scores(self) -> bool | None:
        """`Reading.scores`, of rows to train on."""
        return False if self.flag in ("--eval_data", "--data") else self.reading.scores

    def add(self, number: int, where: str, message: str, broken: bool = False) -> None:
        self.found.append((self.before + number, f"{where}: {message}"))
        self.places.add(where)
        self.broken |= broken

    def note(self, text: str, warning: bool = False) -> None:
        self.reading.note(f"{WARNING if warning else ''}{self.source}: {text}")

    def note_unused(self, columns: Iterable[str]) -> None:
        """Names the columns of the file that nothing reads: the user may have meant them to be read."""
        if unused := list(columns):
            self.note(*unused_note(unused))

    def note_left_out(self) -> None:
        """Counts the records that `left_out` names, and names the first of each kind."""
        for why, where in self.left_out.items():
            self.away.append(f"{len(where)} {why}, the first at {where[0]}")
            self.note(self.away[-1])
        self.left_out.clear()

    @contextmanager
    def first(self) -> Iterator[None]:
        """Raises these faults in place of a column error: unreadable bytes may be its cause."""
        try:
            yield
        except UserError:
            self.raise_any()
            raise

    def settle(self, good: int) -> None:
        """To be called at the end of reading, with the number of good rows. Raises the faults, or reports their number
        where bad rows are skipped.

        Raises all the same where no good row is left, or where a fault may hide good rows.
        """
        if self.found and self.reading.skip and good and not self.broken:
            many = len(self.places)
            first = self.listed(1)[0]
            self.note(f"{many} bad {'row is' if many == 1 else 'rows are'} left out (--on_bad_row skip): {first}")
            return
        self.raise_any()

    def listed(self, count: int = MAX_LISTED) -> list[str]:
        """The first `count` faults in file order."""
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
    """Prints notices, warnings in bold."""
    for notice in notices:
        loud = notice.startswith(WARNING)
        console.say(notice if loud else f"note: {notice}", style="bold yellow" if loud else "yellow")


class Bad(ValueError):
    """A value that cannot be used. Whoever catches it adds one entry to Faults."""
