"""The combined step (gather, accumulate, clip, step) against plain PyTorch over the same pools."""

from __future__ import annotations

from itertools import product

import pytest
from pair import ALWAYS_CLIP, NEVER_CLIP, Case, apart, off_course, train_all
from plain import reference
from together import Together, marked

STAGES = [(0, 0), (1, 1), (2, 2), (1, 2), (3, 3), (2, 3)]
# How far the updates of three steps may be from fp32's, as a share of their length; the mistakes that
# `test_mistakes_would_show` makes are 0.4 and more away. fp32 is compared by parameter instead.
TOLERANCE = {("bf16", ALWAYS_CLIP): 0.03, ("bf16", NEVER_CLIP): 0.07, ("fp16", ALWAYS_CLIP): 0.005}
TOLERANCE |= {("fp16", NEVER_CLIP): 0.02}


def name(case: Case) -> str:
    clip = "clipped" if case.max_grad_norm == ALWAYS_CLIP else "unclipped"
    return f"{case.precision} zero{case.stages[0]}{case.stages[1]} x{case.accumulation} {clip}"


FP32: dict[str, Case] = {}
HALF: dict[str, Case] = {}
SLOW: set[str] = set()  # `make test` has half of the pairs: each stage with either accumulation, clipped in turn
for n, stages in enumerate(STAGES):
    for m, (accumulation, clip) in enumerate(product((1, 3), (ALWAYS_CLIP, NEVER_CLIP))):
        case = Case(stages=stages, accumulation=accumulation, max_grad_norm=clip)
        FP32[name(case)] = case
        SLOW |= {name(case)} if (m in (1, 2)) != (n % 2 == 1) else set()
    for m, (precision, clip) in enumerate(product(("bf16", "fp16"), (ALWAYS_CLIP, NEVER_CLIP))):
        accumulation = 3 if clip == ALWAYS_CLIP else 1
        case = Case(stages=stages, precision=precision, accumulation=accumulation, max_grad_norm=clip)
        HALF[name(case)] = case
        SLOW |= {name(case)} if (m in (1, 2)) != (n % 2 == 1) else set()


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 2], ids=["1 rank", "2 ranks"])
def world(request: pytest.FixtureRequest) -> int:
    """One rank's ground is that of test_independent_step and unit/step/test_train_step too."""
    return request.param


@pytest.fixture(scope="module")
def fp32(world: int) -> Together:
    return Together(train_all, world, FP32, SLOW, True)


@pytest.fixture(scope="module")
def half(world: int) -> Together:
    return Together(train_all, world, HALF, SLOW)


@pytest.mark.parametrize("name", marked(FP32, SLOW))
def test_fp32_is_plain_pytorch(fp32: Together, world: int, name: str) -> None:
    case = FP32[name]
    runs, plain = fp32[name], reference(case, world)
    for run in runs:
        assert apart(run.gradients, plain.gradients) < 1e-6  # the temperature's is among them
        assert apart(run.start, plain.start) == 0
        for found, expected in zip(run.after, plain.after, strict=True):
            assert apart(found, expected) < 2e-6
        assert run.norms == pytest.approx(plain.norms, rel=1e-5)
        assert run.skipped == [False] * case.steps
    mean_losses = [sum(losses) / world for losses in zip(*(run.losses for run in runs), strict=True)]
    assert mean_losses == pytest.approx(plain.losses, rel=1e-6)


@pytest.mark.parametrize("name", marked(HALF, SLOW))
def test_half_precision_follows_fp32(half: Together, world: int, name: str) -> None:
    """bf16, and fp16 with its loss scale: from the same rounded weights, with fp32 master weights."""
    case = HALF[name]
    runs, plain = half[name], reference(case, world)
    assert apart(runs[0].start, plain.start) == 0
    assert off_course(runs[0], plain) < TOLERANCE[case.precision, case.max_grad_norm]
    assert runs[0].norms == pytest.approx(plain.norms, rel=0.01)
    assert apart(runs[0].parameters, runs[-1].parameters) == 0
    moved = [(r.parameters[TEMPERATURE] - r.start[TEMPERATURE]).item() for r in (runs[0], plain)]
    assert moved[0] == pytest.approx(moved[1], rel=0.1)


TEMPERATURE = "retriever.log_temperature"


def test_mistakes_would_show(fp32: Together, world: int) -> None:
    """The reference with one mistake each is far from the run that agrees with the right one."""
    first = next(iter(FP32))
    assert first not in SLOW
    case = FP32[first]
    run, plain = fp32[first][0], reference(case, world)
    assert off_course(run, plain) < 1e-5
    assert off_course(run, reference(case, world, clip="each")) > 0.4
    assert off_course(run, reference(case, world, decay="all")) > 0.01
    if world > 1:
        assert off_course(run, reference(case, world, gather="local")) > 0.4
    assert abs((plain.parameters[TEMPERATURE] - plain.start[TEMPERATURE]).item()) > 1e-3
    assert plain.gradients[TEMPERATURE].abs().item() > 1e-3
