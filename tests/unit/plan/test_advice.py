"""What is recommended fits, is the fewest and the quickest, and says why."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planned import setup

from ds_rag.config import build
from ds_rag.flags import parse
from ds_rag.plan.advice import WORLDS, Fixed, Limits, candidates, fewest, options, quickest, ways
from ds_rag.plan.duration import Rates, step_time
from ds_rag.plan.flags import FILES, training_flags
from ds_rag.plan.hardware import GPUS
from ds_rag.plan.index_cost import plan_index
from ds_rag.plan.memory import plan_memory
from ds_rag.plan.reasons import explain
from ds_rag.plan.setup import STAGES
from ds_rag.plan.workload import Workload

H100 = Rates(GPUS["h100"])
LIMITS = Limits(84.9e9, 1e12, 8)
OPEN = Fixed()


def test_the_fewest_gpus():
    plan = setup()
    world = fewest(plan, OPEN, LIMITS)
    assert world == 4
    best = quickest(replace(plan, world=world), OPEN, H100, LIMITS)
    assert best is not None and LIMITS.fits(best)
    fewer = replace(plan, world=2)
    assert not any(LIMITS.fits(option) for option in options(fewer, OPEN, offload=False))
    assert fewest(plan, OPEN, LIMITS, offload=True) == 1
    assert fewest(replace(plan, lora=("generator",)), OPEN, LIMITS) == 1


def test_nothing_fits():
    tiny = Limits(1e9, 1e9, 8)
    assert fewest(setup(), OPEN, tiny) is None
    assert all(way.setup is None for way in ways(setup(), OPEN, H100, tiny))


def test_the_quickest_is_about_the_quickest():
    plan = setup(world=8)
    best = quickest(plan, OPEN, H100, LIMITS)
    assert best is not None
    others = [o for o in options(plan, OPEN, offload=False) if LIMITS.fits(o)]
    assert len(others) > 5
    assert step_time(best, H100).total <= min(step_time(o, H100).total for o in others) / 0.95


def test_what_is_given_stays():
    plan = setup(world=8, stages=("1", "3"), checkpointing=True, micro_cells=16, retriever_chunk=4)
    fixed = Fixed(frozenset({"world", "stages", "checkpointing", "pass", "retriever_chunk"}))
    assert list(options(plan, fixed, offload=False)) == [plan]
    assert fewest(plan, fixed, LIMITS) == 8
    reasons = explain(plan, fixed, H100, LIMITS)
    assert all("as given" in text for name, text in reasons.items() if name != "candidates")


def test_stage_0_is_tried_in_fp32_only():
    stages = {p: {o.stages for o in options(setup(precision=p), OPEN, False)} for p in ("fp32", "bf16", "fp16")}
    assert ("0", "0") in stages["fp32"] and ("0", "0") not in stages["bf16"] | stages["fp16"]


def test_reasons_name_the_alternative():
    small = setup("minilm", "gpt2", world=1, stages=("1", "1"))
    reasons = explain(small, OPEN, H100, LIMITS)
    assert reasons["GPUs"] == "one is enough" and "one pass over all" in reasons["pass"]
    assert "bf16" in reasons["retriever's stage 1"]
    large = setup(world=4, stages=("2", "3"), checkpointing=True, micro_cells=32)
    less = Limits(70e9, 1e12, 8)
    reasons = explain(large, OPEN, H100, less)
    peak = plan_memory(replace(large, checkpointing=False)).peak
    assert peak > less.usable and f"{peak / 1e9:.3g} GB" in reasons["checkpointing on"]
    assert "on 2 it would take at the least" in reasons["GPUs"]
    assert "reduce gradients 4 times" in reasons["pass"]


@pytest.mark.parametrize(("passages", "wanted"), [(1, 8), (8, 8), (16, 16), (64, 64)])
def test_candidates_follow_the_passages(passages, wanted):
    """203 tokens of a passage against 135 of what follows it."""
    assert candidates(setup(work=Workload(passages=passages))) == wanted
    assert candidates(setup(work=Workload(2, passages=1))) == 2


@pytest.mark.parametrize("stages", [("2", "2"), ("2", "3"), ("3+offload", "3+offload")])
def test_flags_are_those_of_training(stages):
    plan = setup(stages=stages, micro_cells=8, retriever_chunk=4, checkpointing=True, encoders=2)
    index = plan_index(plan.retriever, 21_000_000, 200, H100, "bf16", 5e11)
    flags = training_flags(plan, index)
    argv = [word for name, value in flags.items() for word in (f"--{name}", value)]
    config = parse([*argv, "--train_data", "rows.jsonl"])
    assert config.scoring.micro_cells == "8" and config.scoring.generator_backward == "exact"
    assert config.optim.bf16 and config.model.gradient_checkpointing and config.stage.index_factory == "ivf"
    thin = training_flags(setup(lora=("generator",)), None)
    assert (thin["lora"], thin["lora_r"]) == ("generator", "16")
    assert training_flags(setup(lora=("retriever", "generator")), None)["lora"] == "both"


def test_deepspeed_files():
    assert set(FILES) == set(STAGES) and FILES["3+offload"] == "ds_configs/zero3_offload.json"
    assert build({}).run.deepspeed in FILES.values()


def test_worlds_are_whole_machines():
    assert sorted(WORLDS) == list(WORLDS) and all(w % 8 == 0 or w in (1, 2, 4) for w in WORLDS)
