"""What every benchmark measures with: variants interleaved in one process, quartiles, a plain table."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def interleave(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    seed: int = 0,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of every call: `repeats` for each variant, in the order of the repeats.

    Every repeat calls each variant once, in an order drawn anew, so that what the machine does beside (another
    process, its clock) falls on all alike; element r of every list is from one repeat, and ratios are taken within
    it. Warm-up is the caller's: call each variant before. before: called ahead of each, outside the seconds.
    """
    rng = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name in rng.sample(list(variants), len(variants)):
            before()
            begin = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """How many times as fast the second is, repeat by repeat."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; between two values linearly, so one value is all three."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same keys as aligned text with a heading; the first column to the left, the others to the right."""
    names = list(rows[0])
    lines = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    align = [str.ljust, *[str.rjust] * (len(names) - 1)]
    return "\n".join(
        "  ".join(put(cell, width) for put, cell, width in zip(align, line, widths, strict=True)).rstrip()
        for line in lines
    )
