"""Two ranks are one rank that accumulates their two micro-batches, where the pool is the micro-batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pair import Case, Record, apart, train_all
from ranks import run_ranks

CASES = [Case(stages=(stage, stage), gather=False, seed=stage) for stage in (0, 1, 2)]


@pytest.fixture(scope="module")
def runs() -> tuple[list[list[Record]], list[Record]]:
    two = run_ranks(train_all, 2, [*CASES, replace(CASES[0], gather=True)], True)
    (one,) = run_ranks(train_all, 1, [replace(case, accumulation=2) for case in CASES], True)
    return two, one


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_losses_gradients_and_parameters(runs: tuple[list[list[Record]], list[Record]], stage: int) -> None:
    (first, second), one = (ranks[stage] for ranks in runs[0]), runs[1][stage]
    losses = [(a + b) / 2 for a, b in zip(first.losses, second.losses, strict=True)]
    assert losses == pytest.approx(one.losses, rel=1e-6)
    assert first.losses != pytest.approx(second.losses, rel=1e-3)  # they did have different rows
    assert first.norms == pytest.approx(one.norms, rel=1e-5)
    for run in (first, second):
        assert apart(run.gradients, one.gradients) < 1e-6
        assert apart(run.parameters, one.parameters) < 2e-6


def test_the_pool_of_both_ranks_is_another_objective(runs: tuple[list[list[Record]], list[Record]]) -> None:
    assert runs[0][0][3].losses != pytest.approx(runs[0][0][0].losses, rel=1e-3)
