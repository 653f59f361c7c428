"""Many cases on the same ranks: one process group for all, which costs less than one for each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest
from ranks import run_ranks


class Together:
    """Runs of many cases on the same ranks: those of `make test` at the first look at one of them, the slow ones at
    the first look at one of theirs.

    runs["zero2"]: what that case's run returned, by rank. function: a list of cases to a list of results.
    """

    def __init__(
        self, function: Callable[..., list[Any]], world: int, cases: dict[str, Any], slow: Collection[str], *args: Any
    ) -> None:
        self.function, self.world, self.cases, self.slow, self.args = function, world, cases, slow, args
        self.found: dict[str, tuple[Any, ...]] = {}

    def __getitem__(self, name: str) -> tuple[Any, ...]:
        if name not in self.found:
            names = [n for n in self.cases if (n in self.slow) == (name in self.slow)]
            ranks = run_ranks(self.function, self.world, [self.cases[n] for n in names], *self.args, timeout=600)
            self.found |= dict(zip(names, zip(*ranks, strict=True), strict=True))
        return self.found[name]


def marked(names: Iterable[str], slow: Collection[str]) -> list[Any]:
    """Parameters of a test: those in `slow` are run by `make test-all` only."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]
