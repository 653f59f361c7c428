"""PlainEngine against DeepSpeed at stage 0: the same joint steps, by losses, gradients, norms and weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pair import (
    ALWAYS_CLIP,
    LEARNING_RATES,
    NEVER_CLIP,
    OPTIM,
    Case,
    Record,
    apart,
    make_engines,
    make_models,
    off_course,
    run_steps,
)
from ranks import run_ranks

from ds_rag.engines.engine_pair import Engines
from ds_rag.engines.optimizer import adamw
from ds_rag.engines.plain import PlainEngine

STAGE_0 = Case((0, 0), steps=3, accumulation=2)
CASES = {
    "clipped": replace(STAGE_0, max_grad_norm=ALWAYS_CLIP),
    "unclipped": replace(STAGE_0, max_grad_norm=NEVER_CLIP),
    "one step skipped": replace(STAGE_0, spoil=(1, "generator", float("nan"))),
    "the generator alone at first": replace(STAGE_0, generator_alone=1),
}


def plain_pair(case: Case) -> Engines:
    models = make_models(case.seed)
    engines = {name: PlainEngine(m, adamw(m, OPTIM, LEARNING_RATES[name])) for name, m in models.items()}
    pair = Engines(engines["retriever"], engines["generator"], case.max_grad_norm)
    pair.train()
    return pair


def both(cases: list[Case]) -> list[tuple[Record, Record]]:
    found = []
    for case in cases:
        has_all = not case.generator_alone  # that first step has no gradient of the retriever's
        plain, deepspeed = (run_steps(make(case), case, gradients=has_all) for make in (plain_pair, make_engines))
        found.append((plain, deepspeed))
    return found


@pytest.fixture(scope="module")
def runs() -> dict[str, tuple[Record, Record]]:
    (found,) = run_ranks(both, 1, list(CASES.values()))
    return dict(zip(CASES, found, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_the_plain_engine_takes_the_steps_of_deepspeed(runs, name):
    plain, deepspeed = runs[name]
    assert plain.losses == pytest.approx(deepspeed.losses, rel=1e-6)
    if not CASES[name].generator_alone:
        assert apart(plain.gradients, deepspeed.gradients) < 1e-6
    assert apart(plain.start, deepspeed.start) == 0
    assert all(apart(a, b) < 1e-6 for a, b in zip(plain.after, deepspeed.after, strict=True))
    assert plain.norms == pytest.approx(deepspeed.norms, rel=1e-5, nan_ok=True)
    assert plain.skipped == deepspeed.skipped == [False, name == "one step skipped", False]


def test_what_differs_would_show(runs):
    """Weights move by more than a thousand times the tolerance; clipped or not, and a skipped step, are told apart."""
    assert apart(runs["clipped"][0].start, runs["clipped"][1].parameters) > 1e-3
    for name in ("unclipped", "one step skipped", "the generator alone at first"):
        assert off_course(runs["clipped"][0], runs[name][1]) > 0.01, name
