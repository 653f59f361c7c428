"""The combined step (gather, accumulate, clip, step) against plain PyTorch over the same pools."""

from __future__ import annotations

import pytest
from pair import ALWAYS_CLIP, NEVER_CLIP, Case, Record, apart, off_course, train_all
from plain import reference
from ranks import run_ranks

STAGES = [(0, 0), (1, 1), (2, 2), (1, 2), (3, 3), (2, 3)]
# How far the updates of three steps may be from fp32's, as a share of their length; the mistakes that
# `test_mistakes_would_show` makes are 0.4 and more away. fp32 is compared by parameter instead.
TOLERANCE = {("bf16", ALWAYS_CLIP): 0.03, ("bf16", NEVER_CLIP): 0.07, ("fp16", ALWAYS_CLIP): 0.005}
TOLERANCE |= {("fp16", NEVER_CLIP): 0.02}
FP32 = [
    Case(stages=stages, accumulation=accumulation, max_grad_norm=clip)
    for stages in STAGES
    for accumulation in (1, 3)
    for clip in (ALWAYS_CLIP, NEVER_CLIP)
]
HALF = [
    Case(stages=stages, precision=precision, accumulation=3 if clip == ALWAYS_CLIP else 1, max_grad_norm=clip)
    for precision in ("bf16", "fp16")
    for stages in STAGES
    for clip in (ALWAYS_CLIP, NEVER_CLIP)
]
Runs = list[list[Record]]  # by rank, then by case


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 2], ids=["1 rank", "2 ranks"])
def world(request: pytest.FixtureRequest) -> int:
    """One rank's ground is that of test_independent_step and unit/step/test_train_step too."""
    return request.param


@pytest.fixture(scope="module")
def fp32(world: int) -> Runs:
    return run_ranks(train_all, world, FP32, True)


@pytest.fixture(scope="module")
def half(world: int) -> Runs:
    return run_ranks(train_all, world, HALF)


def name(case: Case) -> str:
    clip = "clipped" if case.max_grad_norm == ALWAYS_CLIP else "unclipped"
    return f"{case.precision} zero{case.stages[0]}{case.stages[1]} x{case.accumulation} {clip}"


@pytest.mark.parametrize("case", FP32, ids=name)
def test_fp32_is_plain_pytorch(fp32: Runs, world: int, case: Case) -> None:
    runs, plain = [ranks[FP32.index(case)] for ranks in fp32], reference(case, world)
    for run in runs:
        assert apart(run.gradients, plain.gradients) < 1e-6  # the temperature's is among them
        assert apart(run.start, plain.start) == 0
        for found, expected in zip(run.after, plain.after, strict=True):
            assert apart(found, expected) < 2e-6
        assert run.norms == pytest.approx(plain.norms, rel=1e-5)
        assert run.skipped == [False] * case.steps
    mean_losses = [sum(losses) / world for losses in zip(*(run.losses for run in runs), strict=True)]
    assert mean_losses == pytest.approx(plain.losses, rel=1e-6)


@pytest.mark.parametrize("case", HALF, ids=name)
def test_half_precision_follows_fp32(half: Runs, world: int, case: Case) -> None:
    """bf16, and fp16 with its loss scale: from the same rounded weights, with fp32 master weights."""
    runs, plain = [ranks[HALF.index(case)] for ranks in half], reference(case, world)
    assert apart(runs[0].start, plain.start) == 0
    assert off_course(runs[0], plain) < TOLERANCE[case.precision, case.max_grad_norm]
    assert runs[0].norms == pytest.approx(plain.norms, rel=0.01)
    assert apart(runs[0].parameters, runs[-1].parameters) == 0
    moved = [(r.parameters[TEMPERATURE] - r.start[TEMPERATURE]).item() for r in (runs[0], plain)]
    assert moved[0] == pytest.approx(moved[1], rel=0.1)


TEMPERATURE = "retriever.log_temperature"


def test_mistakes_would_show(fp32: Runs, world: int) -> None:
    """The reference with one mistake each is far from the run that agrees with the right one."""
    case = FP32[0]
    run, plain = fp32[0][0], reference(case, world)
    assert off_course(run, plain) < 1e-5
    assert off_course(run, reference(case, world, clip="each")) > 0.4
    assert off_course(run, reference(case, world, decay="all")) > 0.01
    if world > 1:
        assert off_course(run, reference(case, world, gather="local")) > 0.4
    assert abs((plain.parameters[TEMPERATURE] - plain.start[TEMPERATURE]).item()) > 1e-3
    assert plain.gradients[TEMPERATURE].abs().item() > 1e-3
