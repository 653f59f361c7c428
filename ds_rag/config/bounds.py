"""The values that a number may have: declared beside each field or flag, and checked here alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ds_rag.runtime.errors import UserError

SEED = 2**32 - 1  # the largest that every library's generator takes
MANY = 10**9  # steps, rows or cells: more than any run has, and far from where whole numbers overflow
TOKENS = 10**6  # of one text
ITEMS = 10**6  # of one batch, or of one search


@dataclass(frozen=True)
class Bounds:
    """`least` to `most`, both allowed unless `above` or `below` leaves that end out; `also`: further values and words
    ("all", "auto") that are allowed."""

    least: float
    most: float
    integer: bool = True
    above: bool = False
    below: bool = False
    also: tuple[Any, ...] = ()

    def read(self, value: Any) -> Any:
        """`value`, text or number, as a number within the bounds, or as one of the words. Raises ValueError."""
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, str):
            if value in self.also:
                return value
            if not value.isascii() or "_" in value:  # Python reads both
                raise ValueError
            value = self._read_integer(value) if self.integer else float(value)
        if not isinstance(value, (int, float)) or not self.holds(value):
            raise ValueError
        return value

    @staticmethod
    def _read_integer(text: str) -> int:
        """21e6 is one, and so is 5; but neither 010, in which some read an 8, nor 1.5."""
        if text.lstrip("-").isdigit():
            if str(int(text)) != text:
                raise ValueError
            return int(text)
        value = float(text)
        if not value.is_integer():  # nor is a NaN
            raise ValueError
        return int(value)

    def holds(self, value: float) -> bool:
        if value in self.also:
            return True
        if self.integer and isinstance(value, float):
            return False
        low = self.least < value if self.above else self.least <= value
        high = value < self.most if self.below else value <= self.most
        return low and high  # a NaN is neither

    def __str__(self) -> str:
        least = f"{'above' if self.above else 'from'} {show(self.least)}"
        most = f"{'below' if self.below else 'to'} {show(self.most)}"
        words = "".join(f", or {value}" for value in self.also)
        return f"{'a whole number' if self.integer else 'a number'} {least} {most}{words}"

    def check(self, value: Any, where: str, fix: str | None = None) -> None:
        """Raises UserError for a value out of the bounds; where: how the user wrote its name."""
        try:
            self.read(value)
        except (ValueError, OverflowError):
            raise UserError(f"{where}: out of bounds", found=show(value), expected=str(self), fix=fix) from None


@dataclass(frozen=True)
class Number:
    """What argparse makes a flag's text a number by, where the flag is no field of the configuration."""

    name: str
    bounds: Bounds

    def __call__(self, text: str) -> Any:
        self.bounds.check(text, f"--{self.name}")
        return self.bounds.read(text)


def show(value: object) -> str:
    """A number as a message has it."""
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
