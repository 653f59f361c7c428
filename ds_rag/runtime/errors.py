"""The exception for mistakes that a user can fix: what was found, what was expected, what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
BEGUN = re.compile(r"(?<=\n)(?=\S)")  # a further line that is not indented


class UserError(Exception):
    """A mistake in a flag, a file or a row. The command line prints it without a traceback and exits with `code`."""

    code = 2

    def __init__(self, message: str, *, found: object = None, expected: object = None, fix: str | None = None):
        self.message, self.found, self.expected, self.fix = message, found, expected, fix
        fields = {"": message, "  found:    ": found, "  expected: ": expected, "  to fix:   ": fix}
        # Further lines of a field are indented, so that text quoted from a file cannot look like a message of ours.
        super().__init__("\n".join(b + BEGUN.sub("    ", str(text)) for b, text in fields.items() if text is not None))


class LaunchError(UserError):
    """A mistake in how this process was started. Every process prints it: it is not known which one is rank 0."""


class RunError(UserError):
    """An error that ends a correctly started run, and that the user may be able to fix."""

    code = 1


class RankError(RunError):
    """An error that only this rank may have met, so it prints the message itself."""


class PlaceError(RankError):
    """A path that this rank cannot use."""

    code = 2


def not_written(what: str, error: object, where: object, fix: str) -> RunError:
    """The error for data that could not be written: the disk is full or broken."""
    return RunError(f"{what} could not be saved", found=error, expected=f"room in {where}", fix=fix)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def choose(table: Mapping[str, Value], name: str, what: str) -> Value:
    """`table[name]`, or a UserError that lists the known names and the nearest one."""
    if name in table:
        return table[name]
    close = nearest(str(name), table)
    raise UserError(
        f"unknown {what} '{name}'",
        expected=" | ".join(table),
        fix=f"did you mean '{close}'?" if close else None,
    )
