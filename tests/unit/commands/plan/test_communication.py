"""Bytes sent, by hand; benchmarks/scaling.py counts them while a step runs (tests/e2e/test_benchmarks.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planned import setup

from ds_rag.commands.plan.communication import engine_traffic, plan_traffic, pool_traffic
from ds_rag.commands.plan.workload import Workload

P = 8_030_261_248


@pytest.mark.parametrize(
    ("stage", "gradients", "weights"),
    [("0", 4, 0), ("1", 4, 2), ("2", 4, 2), ("3", 2, 4), ("3+offload", 2, 4)],
)
def test_a_step_in_one_pass(stage, gradients, weights):
    traffic = engine_traffic(setup(world=4, stages=(stage, stage)), "generator")
    assert (traffic.gradients, traffic.weights) == (0.75 * gradients * P, 0.75 * weights * P)


def test_stage_2_reduces_at_every_backward():
    work = replace(setup().work, accumulation=3)
    chunked = {s: setup(world=4, stages=(s, s), work=work, micro_cells=32) for s in ("1", "2", "3")}
    found = {s: engine_traffic(c, "generator") for s, c in chunked.items()}
    assert found["2"].gradients == 12 * found["1"].gradients == 2 * found["3"].gradients
    assert found["3"].weights == 12 * 3 * 0.75 * 2 * P, "forward without a graph, forward, backward"


def test_one_rank_sends_nothing():
    for pool in (False, True):
        assert plan_traffic(setup(work=Workload(world_pool=pool))).total == 0


def test_the_pool_by_hand():
    work = Workload(4, 8, 2, answer=10, world_pool=True, accumulation=3)
    sent = pool_traffic(setup(world=8, work=work)).pool
    embeddings, cells = (32 + 64) * 1024 * 4, 32 * 8
    assert sent == pytest.approx(3 * 7 / 8 * (embeddings + cells * 8 + 2 * cells * 10 * 4))
    assert pool_traffic(setup(world=8)).pool == 0


def test_what_does_not_learn_sends_nothing_but_under_stage_3():
    frozen = setup(world=4, frozen="generator")
    assert engine_traffic(frozen, "generator").total == 0
    assert engine_traffic(replace(frozen, stages=("2", "3")), "generator").weights == 0.75 * 2 * P
    thin = engine_traffic(setup(world=4, lora=("generator",)), "generator")
    assert thin.total < 0.02 * engine_traffic(setup(world=4), "generator").total
