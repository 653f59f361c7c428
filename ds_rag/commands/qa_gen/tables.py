"""What `ds-rag qa-gen` says: what to expect of a generator, and what the filters did."""

from __future__ import annotations

from typing import Any

from ds_rag.evaluation.questions.sieve import FILTERS, Count, Sieve
from ds_rag.runtime.console import Console

SMALL = 1e9  # parameters of a generator below which most of its questions are poor
MANY = 0.5  # fraction of rejected questions from which it is said that this is normal
WIDE = 70  # characters of an example


def show_expectation(generator: Any, console: Console) -> int:
    """Says what a small generator writes. Returns its number of parameters (of weights in 4 bits: half of them)."""
    size = sum(p.numel() for p in generator.lm.parameters())
    if size < SMALL:
        console.say(
            f"note: a generator of {size / 1e6:.3g}M parameters writes mostly poor questions (from about 3B on they "
            "are good, arXiv:2510.02241). Filters keep the best; what these are worth, only training on them can tell",
            style="yellow",
        )
    return size


def show(sieve: Sieve, console: Console) -> None:
    """The table of the filters."""
    rows = [[c.name, f"{c.read:,}", f"{c.rejected:,}", main_reason(c), example(c)] for c in sieve.counts]
    total, kept = len(sieve.questions), len(sieve.kept)
    console.table(
        f"filters: {kept:,} of {total:,} questions are kept",
        ["filter", "read", "rejected", "most often", "such as"],
        rows,
    )
    if sieve.skip:
        console.say(f"not applied: {', '.join(name for name in FILTERS if name in sieve.skip)}")
    if total and kept and 1 - kept / total >= MANY:
        console.say(
            f"note: {1 - kept / total:.0%} were rejected. That is normal for generated questions: others report up to "
            "90 %. --rejected FILE has each with its reason",
            style="yellow",
        )


def main_reason(count: Count) -> str:
    if not count.reasons:
        return "-"
    reason, times = count.reasons.most_common(1)[0]
    return f"{reason} ({times:,})"


def example(count: Count) -> str:
    if count.example is None:
        return "-"
    text = f"{count.example.query or '(nothing)'} / {count.example.answer or '(nothing)'}"
    return text if len(text) <= WIDE else text[: WIDE - 3] + "..."
