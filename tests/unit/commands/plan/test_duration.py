"""FLOPs against torch's counter on meta tensors, and what a step's seconds are made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from planned import setup
from torch.utils.flop_counter import FlopCounterMode

from ds_rag.commands.plan.duration import Rates, forward_flops, step_flops, step_time
from ds_rag.commands.plan.hardware import GPUS
from ds_rag.commands.plan.shapes import shape_from
from ds_rag.commands.plan.workload import Workload
from ds_rag.data.batch import list_cells
from ds_rag.models.generator import Generator
from ds_rag.models.shared_prefix import attention
from ds_rag.models.shared_prefix.layout import lay_out_shared

WORK = Workload(4, None, 1, query=5, passage=40, answer=6, before=0, after=0)
KEYS = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
H100 = Rates(GPUS["h100"])


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_linear_flops_are_torchs(kind):
    """Attention apart, which torch counts without masks."""
    with torch.device("meta"):
        lm = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **KEYS))
    attention.install(lm)
    rng = np.random.default_rng(0)
    passages, suffixes = ([rng.integers(0, 300, n).astype(np.int32) for _ in range(4)] for n in (40, 11))
    pairs = [(p, s) for s in suffixes for p in passages]
    cells = lay_out_shared(list_cells([p for p, _ in pairs], [s for _, s in pairs], [6] * 16))
    ignored = dict.fromkeys((torch.ops.aten.bmm, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu))
    with FlopCounterMode(display=False, custom_mapping={op: lambda *_, **__: 0 for op in ignored}) as counter:
        Generator(lm, None)(cells.to("meta"))
    shape, load = shape_from(lm.config.to_dict(), kind, "--test", True), WORK.generator(1)
    assert forward_flops(shape, replace(load, pairs=0)) == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert forward_flops(shape, load) - forward_flops(shape, replace(load, pairs=0)) == 4 * 64 * 2 * load.pairs


def test_more_passes_cost_what_they_say():
    """The generator's 3 units of work become 4 in chunks or with checkpointing, 5 with both."""
    quiet = setup(frozen="retriever")
    units = {
        name: step_flops(s)
        for name, s in {
            "one": quiet,
            "chunks": replace(quiet, micro_cells=8),
            "again": replace(quiet, checkpointing=True),
            "both": replace(quiet, micro_cells=8, checkpointing=True),
            "thin": replace(quiet, lora=("generator",)),
        }.items()
    }
    forward = units["one"] / 3
    assert units["chunks"] == pytest.approx(4 * forward, rel=0.01) == units["again"]
    assert units["both"] == pytest.approx(5 * forward, rel=0.01)
    assert units["thin"] == pytest.approx(2 * forward, rel=0.02)


def test_seconds_by_hand():
    plan = step_time(setup(), H100)
    assert plan.compute == pytest.approx(plan.flops / (0.4 * 989e12)) and plan.communication == 0
    eight = step_time(setup(world=8), H100)
    assert eight.flops == plan.flops and eight.communication > 0 and eight.optimizer < plan.optimizer
    assert step_time(setup(world=8), replace(H100, bandwidth=1.0)).communication == pytest.approx(
        eight.communication * 315
    )
    assert step_time(setup(world=16), H100).communication > 5 * eight.communication, "between machines"


def test_stage_3_waits_only_for_what_the_work_does_not_hide():
    fast, slow = (replace(H100, bandwidth=b) for b in (1000.0, 1.0))
    wide = setup(world=8, stages=("3", "3"))
    assert step_time(wide, fast).communication < step_time(setup(world=8), fast).communication
    assert step_time(wide, slow).communication > 10


def test_offload_is_slower():
    times = {s: step_time(setup(world=8, stages=(s, s)), H100) for s in ("3", "3+offload")}
    assert times["3+offload"].total > times["3"].total and times["3"].offload == 0
