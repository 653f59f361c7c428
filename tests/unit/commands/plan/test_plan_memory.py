"""Predicted peaks against those of real training processes, and how a plan answers to its parts.

More and larger runs are measured by benchmarks/scaling.py.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "distributed"))

from joint_runs import MEMORY_RUNS, setup_of
from planned import setup
from ranks import run_ranks

from ds_rag.commands.plan.memory import generator_flow, plan_memory
from ds_rag.commands.plan.setup import STAGES, Setup

MEASURED = list(MEMORY_RUNS)[:4]
SLOW = ("llama 62M, stage 2, two ranks", "llama 22M, stage 2, chunks")  # benchmarks/scaling.py measures all of them


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in MEASURED])
def test_the_peak_is_predicted(name):
    from peak_memory import peak_of_training

    world, run = MEMORY_RUNS[name]
    found = run_ranks(peak_of_training, world, run)
    plan = setup_of(run, world)
    for shape in (plan.retriever, plan.generator):
        assert found[0]["generator" if shape.head else "retriever"] == shape.parameters
    measured = max(rank["peak_mb"] for rank in found)
    assert plan_memory(plan).peak / 2**20 == pytest.approx(measured, rel=0.2)


def test_what_is_measured_differs():
    """Sizes, stages, ranks, families: or one formula would do for all."""
    runs = [MEMORY_RUNS[name] for name in MEASURED]
    assert {run.stage for _, run in runs} == {0, 2} and {world for world, _ in runs} == {1, 2}
    assert {run.generator["model_type"] for _, run in runs} == {"gpt2", "llama"}


def peak(plan: Setup, **changes: Any) -> float:
    return plan_memory(replace(plan, **changes)).peak


def test_what_saves_memory_saves_it():
    plan = setup(world=8)
    whole = peak(plan)
    assert peak(plan, checkpointing=True) < 0.5 * whole
    assert peak(plan, micro_cells=8) < peak(plan, micro_cells=64) < whole
    assert peak(plan, lora=("generator",)) < whole
    chunk = replace(plan, micro_cells=1, work=replace(plan.work, batch=256), stages=("3", "3"))
    assert peak(chunk, retriever_chunk=8) < peak(chunk)
    by_stage = [peak(plan, stages=(s, s)) for s in STAGES]
    assert by_stage == sorted(by_stage, reverse=True)


def test_of_mixed_stages_the_generators_counts():
    plan = setup(world=8)
    both, mixed, none = (peak(plan, stages=pair) for pair in (("3", "3"), ("2", "3"), ("2", "2")))
    assert mixed < 0.97 * none and mixed == pytest.approx(both, rel=0.01)


def test_tokens_are_what_activations_follow():
    plan = setup(stages=("3", "3"), world=512)
    double = replace(plan, work=replace(plan.work, batch=2 * plan.work.batch))
    kept = [plan_memory(p).activations for p in (plan, double)]
    for name in kept[0]:
        assert kept[1][name] == pytest.approx(2 * kept[0][name])


def test_the_peak_is_one_of_the_phases():
    plan = plan_memory(setup())
    assert plan.peak == plan.phases[plan.peak_phase]
    assert list(plan.phases) == ["forward", "retriever backward", "generator backward", "step"]


def test_a_frozen_generator_keeps_no_graph():
    plan = plan_memory(setup(frozen="generator"))
    assert plan.states["generator"].gradients == 0
    assert plan.activations["generator"] < 0.1 * plan_memory(setup()).activations["generator"]


def test_logits_that_are_kept_are_in_every_phase_in_which_they_are_there():
    """Two vocabularies, one large: in the difference nothing hides them, as a measured peak's tolerance does."""
    plans, phases = [], []
    for vocabulary in (32_000, 256_000):
        plan = setup(stages=("3", "3"), world=64)
        plans.append(replace(plan, generator=replace(plan.generator, vocabulary=vocabulary)))
        found = plan_memory(plans[-1])
        resident = sum(s.fixed + s.live for s in found.states.values())
        phases.append({name: bytes_ - resident for name, bytes_ in found.phases.items()})
    targets = plans[0].work.generator(64).targets
    more = targets * (256_000 - 32_000) * plans[0].activations("generator").size
    for name in ("forward", "retriever backward"):
        assert phases[1][name] - phases[0][name] == pytest.approx(more, rel=0.1), name
    kept = generator_flow(plans[1])[0].kept
    assert phases[1]["generator backward"] >= kept + more
    of_chunk = plan_memory(replace(plans[1], micro_cells=4)).phases
    assert of_chunk["forward"] < plan_memory(plans[1]).phases["forward"] - 0.9 * more
