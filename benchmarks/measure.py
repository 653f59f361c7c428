"""Tools of all benchmarks: interleaved timing of variants in one process, quartiles, a plain table."""

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

    Every repeat calls each variant once, in a new random order, so that disturbances (another process, the clock of the
    machine) affect all variants alike. Element r of every list is from repeat r; ratios should be taken within a
    repeat. The caller must warm up each variant. before: called before each measurement, not timed.
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
    """For each repeat, how many times as fast the second is as the first."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile, by linear interpolation; of one value, that value three times."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A text table of rows that have the same keys: the first column is aligned to the left, the others to the
    right."""
    names = list(rows[0])
    lines = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    align = [str.ljust, *[str.rjust] * (len(names) - 1)]
    return "\n".join(
        "  ".join(put(cell, width) for put, cell, width in zip(align, line, widths, strict=True)).rstrip()
        for line in lines
    )
