"""Bounds of numeric settings: declared beside each field or flag, and checked only here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ds_rag.runtime.errors import UserError

SEED = 2**32 - 1  # the largest seed that the random generators of all libraries accept
MANY = 10**9  # steps, rows or cells: more than any run has, and far below integer overflow
TOKENS = 10**6  # tokens of one text
ITEMS = 10**6  # items of one batch or one search


@dataclass(frozen=True)
class Bounds:
    """From `least` to `most`. Both are allowed, except `least` if `above` is set and `most` if `below` is set.

    also: other values that are allowed, numbers or words such as "all" and "auto".
    """

    least: float
    most: float
    integer: bool = True
    above: bool = False
    below: bool = False
    also: tuple[Any, ...] = ()

    def read(self, value: Any) -> Any:
        """`value`, a string or a number, as a number within the bounds, or as one of the words in `also`. Raises
        ValueError for anything else."""
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, str):
            if value in self.also:
                return value
            if not value.isascii() or "_" in value:  # Python accepts other digits and 1_000
                raise ValueError
            value = self._read_integer(value) if self.integer else float(value)
        if not isinstance(value, (int, float)) or not self.holds(value):
            raise ValueError
        return value

    @staticmethod
    def _read_integer(text: str) -> int:
        """Accepts 5 and 21e6, but neither 1.5 nor 010, which some people read as octal 8."""
        if text.lstrip("-").isdigit():
            if str(int(text)) != text:
                raise ValueError
            return int(text)
        value = float(text)
        if not value.is_integer():  # a NaN is not an integer either
            raise ValueError
        return int(value)

    def holds(self, value: float) -> bool:
        if value in self.also:
            return True
        if self.integer and isinstance(value, float):
            return False
        low = self.least < value if self.above else self.least <= value
        high = value < self.most if self.below else value <= self.most
        return low and high  # False for NaN

    def __str__(self) -> str:
        least = f"{'above' if self.above else 'from'} {number_text(self.least)}"
        most = f"{'below' if self.below else 'to'} {number_text(self.most)}"
        words = "".join(f", or {value}" for value in self.also)
        return f"{'a whole number' if self.integer else 'a number'} {least} {most}{words}"

    def check(self, value: Any, where: str, fix: str | None = None) -> None:
        """Raises UserError for a value out of bounds. where: the setting's name as the user wrote it."""
        try:
            self.read(value)
        except (ValueError, OverflowError):
            raise UserError(f"{where}: out of bounds", found=number_text(value), expected=str(self), fix=fix) from None


@dataclass(frozen=True)
class Number:
    """The argparse `type` of a numeric flag that is not a field of the configuration."""

    name: str
    bounds: Bounds

    def __call__(self, text: str) -> Any:
        self.bounds.check(text, f"--{self.name}")
        return self.bounds.read(text)


def number_text(value: object) -> str:
    """A number formatted for a message."""
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, int) and abs(value) < 10**15:
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)[:40]


def integer(least: int, most: int, *also: Any) -> Bounds:
    """Whole numbers."""
    return Bounds(least, most, also=also)


def real(least: float, most: float, *also: Any) -> Bounds:
    """Numbers."""
    return Bounds(least, most, integer=False, also=also)


def above(least: float, most: float, *also: Any) -> Bounds:
    """Numbers above `least`."""
    return Bounds(least, most, integer=False, above=True, also=also)


def fraction() -> Bounds:
    """0 or more, below 1."""
    return Bounds(0, 1, integer=False, below=True)


def inner_fraction() -> Bounds:
    """Above 0, below 1."""
    return Bounds(0, 1, integer=False, above=True, below=True)
