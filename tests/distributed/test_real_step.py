"""The real step on DeepSpeed engines against one plain PyTorch process over the same pools.

Stages, ranks, precision, accumulation, ways of scoring, retriever chunks, activation checkpointing and pools are
covered pairwise and not in full product: every value meets most values of the others in some run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pair import apart, off_course
from ranks import run_ranks
from real_step import Found, Run, plain_run, train_real
from together import Together, marked

# 12 cells and some 24 passages: three chunks of cells, four of passages, and of both the last is a shorter one.
CHUNKS: dict[str, Any] = {"generator_backward": "exact", "micro_cells": "5", "retriever_chunk": 7, "candidates": "4"}
CHUNKS_OF_ALL: dict[str, Any] = CHUNKS | {"candidates": "all", "micro_cells": "20"}  # in bf16: less noise
WORLD: dict[str, Any] = {"pool": "world"}
CHECKPOINTS: dict[str, Any] = {"gradient_checkpointing": True}
INDEX: dict[str, Any] = {"candidates_from": "index", "index_candidates": 3, "contrastive_weight": 0.3}
GATE: dict[str, Any] = {"gate_gain": 0.1, "gate_margin": 0.01}
WORDS: dict[str, Any] = {"lexical_prior": 0.7}
ONE_PASS: dict[str, Any] = {"generator_backward": "one_pass"}
ALL_KEPT: dict[str, Any] = {"generator_backward": "posterior", "posterior_threshold": 0.0}
QUERY: dict[str, Any] = {"train_side": "query"}
LORA: dict[str, Any] = {"lora": "both", "lora_r": 3, "retriever": "folder", "generator": "folder"}
RUNS: dict[str, Run] = {
    "zero0": Run((0, 0)),
    "zero0 chunks x2": Run((0, 0), accumulation=2, flags=CHUNKS),
    "zero0 world chunks checkpoints": Run((0, 0), flags=WORLD | CHUNKS | CHECKPOINTS),
    "zero1 x4 world": Run((1, 1), accumulation=4, flags=WORLD),
    "zero1 chunks checkpoints": Run((1, 1), flags=CHUNKS | CHECKPOINTS),
    "zero1 world few candidates": Run((1, 1), flags=WORLD | {"candidates": "4"}),
    "zero2 one pass x4 checkpoints": Run((2, 2), accumulation=4, flags=ONE_PASS | CHECKPOINTS),
    "zero2 world": Run((2, 2), flags=WORLD | ONE_PASS),
    "zero2 world chunks x2": Run((2, 2), accumulation=2, flags=WORLD | CHUNKS),
    "zero2 plain sequences": Run((2, 2), accumulation=2, flags={"share_prefixes": False} | CHUNKS),
    "zero12 world tight memory": Run((1, 2), flags=WORLD | {"memory_budget": 1e-4}),
    "zero3": Run((3, 3)),
    "zero3 chunks x4": Run((3, 3), accumulation=4, flags=CHUNKS),
    "zero3 world one pass x2 checkpoints": Run((3, 3), accumulation=2, flags=WORLD | ONE_PASS | CHECKPOINTS),
    "zero3 world chunks checkpoints": Run((3, 3), flags=WORLD | CHUNKS | CHECKPOINTS),
    "zero23 world chunks x2": Run((2, 3), accumulation=2, flags=WORLD | CHUNKS),
    "zero13 one pass x4": Run((1, 3), accumulation=4, flags=ONE_PASS),
    "zero1 lora world": Run((1, 1), flags=WORLD | LORA),
    "zero2 lora chunks x2 checkpoints": Run((2, 2), accumulation=2, flags=LORA | CHUNKS | CHECKPOINTS),
    "zero3 lora x4": Run((3, 3), accumulation=4, flags=LORA),
    "zero23 lora world chunks checkpoints": Run((2, 3), flags=LORA | WORLD | CHUNKS | CHECKPOINTS),
    "zero3 lora generator chunks": Run((3, 3), flags=LORA | CHUNKS | {"lora": "generator"}),
    "zero2 posterior": Run((2, 2), accumulation=2, flags=ALL_KEPT),
    **{
        f"{name} world": Run((2, 2), flags=WORLD | CHUNKS | {"objective": name, "contrastive_weight": 0.3})
        for name in ("rag_token", "positive_only", "infonce", "emdr2", "pdist", "replug_lsr")
    },
    "pool prior world": Run((1, 1), flags=WORLD | {"prior": "pool", "candidates": "3"}),
    "zero2 index candidates": Run((2, 2), accumulation=2, flags=INDEX | {"candidates": "4"}),
    "zero1 index candidates world": Run((1, 1), flags=INDEX | WORLD | CHUNKS),
    "frozen retriever world": Run((2, 2), flags=WORLD | CHUNKS | {"freeze": "retriever"}),
    "zero2 gate world chunks x2": Run((2, 2), accumulation=2, flags=WORLD | CHUNKS | GATE),
    "zero3 gate": Run((3, 3), flags=GATE | {"candidates": "4"}),
    "gate frozen generator world": Run((1, 1), flags=WORLD | GATE | {"freeze": "generator"}),
    "zero3 query side world chunks x2": Run((3, 3), accumulation=2, flags=WORLD | CHUNKS | QUERY),
    "zero2 query side": Run((2, 2), flags=QUERY | INDEX),
    "zero2 words world chunks x2": Run((2, 2), accumulation=2, flags=WORLD | CHUNKS | WORDS),
    "zero3 words": Run((3, 3), flags=WORDS | {"candidates": "4"}),
    "frozen generator world": Run((2, 2), flags=WORLD | {"freeze": "generator"}),
}
# Accumulated: the temperature's gradient is one sum, and over some micro-batches its terms cancel to bf16's noise.
HALF: dict[str, Run] = {
    "bf16 zero1 chunks x2": Run((1, 1), "bf16", accumulation=2, flags=CHUNKS_OF_ALL),
    "bf16 zero3 world chunks x4": Run((3, 3), "bf16", accumulation=4, flags=WORLD | CHUNKS_OF_ALL),
    "bf16 zero23 world x2 checkpoints": Run((2, 3), "bf16", accumulation=2, flags=WORLD | CHECKPOINTS),
    "bf16 zero0 one pass x2": Run((0, 0), "bf16", accumulation=2, flags=ONE_PASS),
    "bf16 zero2 lora": Run((2, 2), "bf16", flags=LORA),
    "bf16 zero2 world x2": Run((2, 2), "bf16", accumulation=2, flags=WORLD),
    "bf16 zero2 world chunks x2 checkpoints": Run(
        (2, 2), "bf16", accumulation=2, flags=WORLD | CHUNKS_OF_ALL | CHECKPOINTS
    ),
}
# Each of their choices meets the others in a run of `make test`, too.
SLOW = {
    "zero0 chunks x2",
    "zero0 world chunks checkpoints",
    "zero1 chunks checkpoints",
    "zero2 world chunks x2",
    "zero3 lora generator chunks",
    "zero23 world chunks x2",
    "emdr2 world",
    "bf16 zero23 world x2 checkpoints",
    "zero2 plain sequences",
    "zero2 query side",
    "zero3 world one pass x2 checkpoints",
    "zero1 lora world",
    "zero3 lora x4",
    "zero23 lora world chunks checkpoints",
    "rag_token world",
    "replug_lsr world",
    "zero1 index candidates world",
    "gate frozen generator world",
    "bf16 zero3 world chunks x4",
    "bf16 zero2 world x2",
    "bf16 zero2 world chunks x2 checkpoints",
}
assert RUNS.keys() | HALF.keys() >= SLOW


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 2], ids=["1 rank", "2 ranks"])
def world(request: pytest.FixtureRequest) -> int:
    """One rank's ground is that of test_independent_step, test_joint_step and unit/step/test_train_step too."""
    return request.param


@pytest.fixture(scope="module")
def found(world: int) -> Together:
    return Together(train_real, world, RUNS | HALF, SLOW)


@pytest.mark.parametrize("name", marked(RUNS, SLOW))
def test_fp32_is_plain_pytorch(found: Together, world: int, name: str) -> None:
    check_against_plain(found[name], RUNS[name], world)


ON_MORE = ["zero2 world", "zero3 lora x4", "zero3 world chunks checkpoints", "zero23 world chunks x2"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [3, 4])
def test_more_ranks(more: int) -> None:
    found = run_ranks(train_real, more, [RUNS[name] for name in ON_MORE], timeout=300)
    for n, name in enumerate(ON_MORE):
        check_against_plain([ranks[n] for ranks in found], RUNS[name], more)


def check_against_plain(runs: Sequence[Found], run_of: Run, world: int) -> None:
    """Losses, gradients and three optimizer steps, on every rank."""
    plain = plain_run(run_of, world)
    for run in runs:
        assert run.losses == pytest.approx(plain.losses, rel=2e-5)
        assert apart(run.start, plain.start) == 0
        for key, wanted in plain.gradients.items():
            torch.testing.assert_close(run.gradients[key], wanted, rtol=1e-3, atol=2e-5)
        whole = torch.cat([g.flatten() for g in plain.gradients.values()])
        apart_by = torch.cat([(run.gradients[k] - g).flatten() for k, g in plain.gradients.items()])
        assert whole.norm() > 1e-2 and apart_by.norm() <= 3e-5 * whole.norm()
        assert off_course(run, plain) < 1e-3


# bf16 keeps 8 bits: models were up to 0.09 apart, the temperature up to 0.04; off by two ranks it would be 0.5 or 1.
LEAST_WRONG = {"retriever": 0.15, "generator": 0.15, "temperature": 0.1}


def gradients_apart(run: Found, plain: Found) -> dict[str, float]:
    """By model, and of the temperature by itself: the norm of the difference, over the plain gradient's."""
    found = {}
    for part in ("retriever", "generator", "temperature"):
        keys = [k for k in plain.gradients if part in k and ("temperature" in k) == (part == "temperature")]
        if keys:
            ours, wanted = (torch.cat([x.gradients[k].float().flatten() for k in keys]) for x in (run, plain))
            found[part] = float((ours - wanted).norm() / wanted.norm())
    return found


@pytest.mark.parametrize("name", marked(HALF, SLOW))
def test_bf16_follows_fp32(found: Together, world: int, name: str) -> None:
    plain = plain_run(HALF[name], world)
    runs = found[name]
    distances = gradients_apart(runs[0], plain)
    assert distances.keys() >= {"retriever", "generator", "temperature"}
    assert all(distance < LEAST_WRONG[part] for part, distance in distances.items()), distances
    assert off_course(runs[0], plain) < 0.2
    assert apart(runs[0].parameters, runs[-1].parameters) == 0
    assert runs[0].losses == pytest.approx(plain.losses, rel=0.02)


def test_the_pool_of_the_world_is_another_objective(found: Together, world: int) -> None:
    """On two ranks it sees the other rank's passages; on one it is the rank's."""
    alone, joined = (found[name][0].losses for name in ("zero0", "zero2 world"))
    assert (joined == pytest.approx(alone, rel=1e-4)) == (world == 1)


def test_what_is_logged_does_not_count_a_shared_pool_twice(found: Together, world: int) -> None:
    for run in found["zero2 world"]:
        assert run.totals["queries"] == 3 * world
        assert run.sums[0]["prior_entropy"] * world / run.totals["queries"] < 3.2  # nats: of at most 24 passages
