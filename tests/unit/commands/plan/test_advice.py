"""What is recommended fits, is the fewest and the quickest, and says why."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields, replace
from pathlib import Path

import pytest
from planned import setup

from ds_rag.commands.plan.advice import WORLDS, Fixed, Limits, candidates, fewest, options, quickest, ways
from ds_rag.commands.plan.duration import Rates, step_time
from ds_rag.commands.plan.flags import FILES, command_line
from ds_rag.commands.plan.hardware import GPUS
from ds_rag.commands.plan.index_cost import plan_index
from ds_rag.commands.plan.memory import plan_memory
from ds_rag.commands.plan.reasons import explain
from ds_rag.commands.plan.request import setup_of
from ds_rag.commands.plan.setup import NAMES, STAGES, Setup
from ds_rag.commands.plan.workload import Workload
from ds_rag.config import build
from ds_rag.config.flags import parse

ROOT = Path(__file__).resolve().parents[4]
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
    assert "on 2 it would take at least" in reasons["GPUs"]
    assert "reduce gradients 4 times" in reasons["pass"]


@pytest.mark.parametrize(("passages", "wanted"), [(1, 8), (8, 8), (16, 16), (64, 64)])
def test_candidates_follow_the_passages(passages, wanted):
    """203 tokens of a passage against 135 of what follows it."""
    assert candidates(setup(work=Workload(passages=passages))) == wanted
    assert candidates(setup(work=Workload(2, passages=1))) == 2


def stage_in(file: str) -> str:
    """What a DeepSpeed file says of an engine's stage."""
    zero = json.loads((ROOT / file).read_text())["zero_optimization"]
    return str(zero["stage"]) + ("+offload" if "offload_optimizer" in zero else "")


def setup_that_trains(command: str) -> Setup:
    """From the printed command back, by the parser of training; presets stand for folders that are not there."""
    words = shlex.split(command.replace("path/to/", ""))
    start = words.index("launch/train.py" if "launch/train.py" in words else "train")
    config = parse([*words[start + 1 :], "--train_data", "rows.jsonl"])
    files = {name: getattr(config.run, f"deepspeed_{name}") or config.run.deepspeed for name in NAMES}
    args = {f"{name}_stage": stage_in(file) for name, file in files.items()} | {"passages_per_row": 1}
    launched = dict(zip(words[1:start:2], words[2:start:2], strict=True))
    world = int(launched.get("--nproc_per_node", 1)) * int(launched.get("--nnodes", 1))
    return replace(setup_of(config, args, GPUS["h100"]), world=world)


LENGTHS = Workload(query=32, passage=100, answer=16)
TRAINED = [
    {},
    {"work": Workload(4, None, accumulation=2, world_pool=True)},
    {"work": replace(LENGTHS, candidates=3, shared=False)},
    {"world": 8},
    {"world": 12},
    {"world": 16},
    {"stages": ("0", "0"), "precision": "fp32"},
    {"stages": ("1", "3")},
    {"stages": ("2", "3+offload")},
    {"precision": "fp16"},
    {"checkpointing": True, "micro_cells": 8, "retriever_chunk": 4, "encoders": 2},
    {"work": replace(LENGTHS, query_side=True), "encoders": 2},
    {"lora": ("generator",), "lora_rank": 4},
    {"lora": NAMES, "lora_rank": 64},
    {"frozen": "generator"},
    {"frozen": "generator", "teacher_cache": "scores"},
    {"frozen": "retriever"},
]


@pytest.mark.parametrize("changes", TRAINED, ids=str)
def test_flags_are_those_of_training(changes):
    plan = setup(**changes)
    assert setup_that_trains(command_line(plan, 8, None, {})) == plan


def test_every_choice_of_a_setup_is_among_those_that_are_trained():
    """A field that a plan comes to have is a flag, or the command is not the plan."""
    said = {name for changes in TRAINED for name in changes}
    assert said == {f.name for f in fields(Setup)} - {"retriever", "generator", "device"}


def test_the_flags_of_the_index():
    index = plan_index(setup().retriever, 21_000_000, 200, H100, "bf16", 5e10, hosts=2)
    words = shlex.split(command_line(setup(), 8, index, {}))
    stage = parse(words[2:]).evaluation
    assert (stage.index_factory, stage.index_shards) == (index.recommended, index.shards) == ("ivf", "keep")


@pytest.mark.parametrize(
    ("world", "launcher"),
    [
        (1, "ds-rag train "),
        (8, "torchrun --nproc_per_node 8 launch/train.py "),
        (12, "torchrun --nproc_per_node 6 --nnodes 2 --node_rank 0 --master_addr node1 launch/train.py "),
        (16, "torchrun --nproc_per_node 8 --nnodes 2 --node_rank 0 --master_addr node1 launch/train.py "),
    ],
)
def test_several_machines_are_told_where_to_meet(world, launcher):
    assert command_line(setup(world=world), 8, None, {}).startswith(launcher)


def test_deepspeed_files():
    assert set(FILES) == set(STAGES) and FILES["3+offload"] == "ds_configs/zero3_offload.json"
    assert build({}).run.deepspeed in FILES.values()


def test_worlds_are_whole_machines():
    assert sorted(WORLDS) == list(WORLDS) and all(w % 8 == 0 or w in (1, 2, 4) for w in WORLDS)
