"""A gradient that is not finite, in one model on one rank: no rank steps either, and the run goes on."""

from __future__ import annotations

import math
from itertools import product

import pytest
from pair import ALWAYS_CLIP, Case, apart, off_course, train_all
from plain import reference
from together import Together, marked

TOLERANCE = {"fp32": 1e-5, "bf16": 0.03, "fp16": 0.005}
BAD_STEP = 1
STAGES = [((0, 0), 1), ((1, 1), 2), ((2, 2), 2), ((0, 2), 1), ((2, 1), 1), ((3, 3), 2), ((1, 3), 1)]
BAD = [("retriever", math.nan), ("generator", math.inf)]
OVERFLOWING = [(0, 0), (1, 2), (2, 3)]


def name(case: Case) -> str:
    assert case.spoil is not None
    return f"{case.precision} zero{case.stages[0]}{case.stages[1]} {case.spoil[2]} in {case.spoil[1]}"


CASES: dict[str, Case] = {}
SLOW: set[str] = set()  # `make test` spoils one of the two models in turn
for n, (precision, (stages, accumulation), (model, value)) in enumerate(product(TOLERANCE, STAGES, BAD)):
    case = Case(stages=stages, precision=precision, accumulation=accumulation, spoil=(BAD_STEP, model, value))
    CASES[name(case)] = case
    if n % 4 in (1, 2):
        SLOW.add(name(case))
OVERFLOW = {
    f"zero{stages[0]}{stages[1]}": Case(
        stages=stages, precision="fp16", steps=16, extra={"fp16": {"initial_scale_power": 24}}
    )
    for stages in OVERFLOWING
}


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 2], ids=["1 rank", "2 ranks"])
def world(request: pytest.FixtureRequest) -> int:
    """What one rank skips, two skip together."""
    return request.param


@pytest.fixture(scope="module")
def runs(world: int) -> Together:
    return Together(train_all, world, CASES | OVERFLOW, SLOW)


@pytest.mark.parametrize("name", marked(CASES, SLOW))
def test_both_skip_on_all_ranks(runs: Together, world: int, name: str) -> None:
    case = CASES[name]
    assert case.max_grad_norm == ALWAYS_CLIP
    plain = reference(case, world)
    for run in runs[name]:
        assert run.skipped == [False, True, False]
        assert apart(run.after[0], run.start) > 1e-3  # it does move
        assert apart(run.after[1], run.after[0]) == 0
        assert math.isnan(run.norms[1]) and run.norms[2] == pytest.approx(plain.norms[2], rel=0.01)
        assert off_course(run, plain) < TOLERANCE[case.precision]
        before = 2.0**10 if case.precision == "fp16" else 1.0
        shrunk = before / 2 if case.precision == "fp16" else 1.0
        assert run.scales == [(before, before), (shrunk, shrunk), (shrunk, shrunk)]
    assert apart(runs[name][0].parameters, runs[name][-1].parameters) == 0


@pytest.mark.parametrize("name", OVERFLOW)
def test_an_overflown_loss_scale_shrinks_until_it_fits(runs: Together, name: str) -> None:
    run = runs[name][0]
    assert run.skipped[:3] == [True] * 3 and not run.skipped[-1]
    before, scale = run.start, 2.0**24
    for skipped, scales, after in zip(run.skipped, run.scales, run.after, strict=True):
        scale = scale / 2 if skipped else scale
        assert scales == (scale, scale)
        assert (apart(after, before) == 0) == skipped
        before = after
