"""The runs that gpu.py measures, and what `ds-rag plan` says of them on the device at hand. No torch.

Shapes are of common models, weights random. In the tiny form every part is the same, on models of a few thousand
parameters, for a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from joint_runs import ONE_PASS, Run, setup_of

from ds_rag.commands.plan.duration import Rates, forward_flops, step_flops, step_time
from ds_rag.commands.plan.hardware import GPUS, Gpu
from ds_rag.commands.plan.memory import plan_memory
from ds_rag.commands.plan.presets import MODELS

SMALL: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 64}
TINY: dict[str, dict[str, Any]] = {
    "minilm": {"model_type": "bert", "vocab_size": 64, **SMALL},
    "gpt2": {"model_type": "gpt2", "vocab_size": 64, "n_embd": 32, "n_head": 2, "n_layer": 1, "n_positions": 64},
    "llama-1b": {"model_type": "llama", "vocab_size": 64, **SMALL, "num_key_value_heads": 1},
    "llama-8b": {"model_type": "llama", "vocab_size": 64, **SMALL, "num_hidden_layers": 2},
}
EIGHT = ONE_PASS | {"candidates": "8"}
FEW = ONE_PASS | {"candidates": "4"}


def runs(tiny: bool) -> dict[str, Run]:
    """By name: the part of gpu.py, and for exactness its two models."""
    models = TINY if tiny else MODELS
    flags = FEW if tiny else EIGHT
    short = (4, 1, 5, 12, 4) if tiny else (64, 1, 20, 160, 20)
    long = (4, 1, 5, 12, 4) if tiny else (16, 1, 64, 200, 64)
    gpt2 = Run(models["minilm"], models["gpt2"], *short, precision="bf16", flags=flags)
    llama = Run(models["minilm"], models["llama-1b"], *long, precision="bf16", flags=flags)
    adapters = flags | {"lora": "generator", "gradient_checkpointing": True}
    few: dict[str, Any] = {"batch": 4, "precision": "fp32"}
    return {
        "step_gpt2": gpt2,
        "step_llama_1b": llama,
        "exactness_gpt2": replace(gpt2, **few),
        "exactness_llama_1b": replace(llama, **few),
        "scoring": replace(llama, flags=flags | {"freeze": "generator"}),
        "fp16": replace(gpt2, precision="fp16"),
        "offload_llama_1b": replace(llama, stage="3+offload"),
        "lora_llama_8b": replace(llama, generator=models["llama-8b"], stage=1, flags=adapters),
    }


@dataclass(frozen=True)
class Planned:
    """Of one run on one GPU. seconds, queries_per_s: of an optimizer step. gb, host_gb: peaks, in 1e9 bytes. tokens,
    cells: that one step reads. flops: of a step without what is computed twice. scoring_s: the generator's forward."""

    seconds: float
    queries_per_s: float
    gb: float
    host_gb: float
    tokens: float
    cells: int
    flops: float
    scoring_s: float


def planned(run: Run, rates: Rates, device: str) -> Planned:
    setup = setup_of(run, 1, device)
    memory, load = plan_memory(setup), setup.work.generator(1)
    seconds = step_time(setup, rates).total
    return Planned(
        seconds=seconds,
        queries_per_s=run.batch * run.accumulation / seconds,
        gb=memory.peak / 1e9,
        host_gb=memory.host / 1e9,
        tokens=setup.work.retriever().tokens + load.tokens,
        cells=setup.work.cells(1),
        flops=step_flops(replace(setup, checkpointing=False, micro_cells=0)),
        scoring_s=forward_flops(setup.generator, load) / rates.flops(run.precision),
    )


def known_gpu(name: str) -> Gpu | None:
    """The preset of a device that calls itself so, such as "NVIDIA A100-SXM4-80GB"; None: there is none."""
    fitting = [key for key in GPUS if all(word in name.lower() for word in key.split("-"))]
    return GPUS[max(fitting, key=len)] if fitting else None


def row(figure: str, unit: str, measured: float, beside: float | None = None, source: str = "") -> dict[str, Any]:
    """One line of the table. beside: what `source` (plan, CPU, goal, ...) says of the same figure."""
    return {"figure": figure, "unit": unit, "measured": measured, "beside": beside, "source": source}
