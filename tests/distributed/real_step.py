"""`train_step` itself on DeepSpeed engines, over one or two ranks, and the same run in one plain PyTorch process.

The parts are those of tests/unit/small.py: random models, rows of the almanac. The plain run reads every cell as a
sequence of its own, in one graph over both models, over the same pools.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ds_rag.engines.deepspeed_engine import make_engine
from ds_rag.engines.optimizer import adamw
from ds_rag.run.assemble import Parts
from ds_rag.runtime import collectives
from ds_rag.train import train_step

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from pair import DTYPES, LEARNING_RATES, NAMES, OPTIM, Case, ds_config, full_gradients, parameters
from small import plain_loss, small_parts

STEPS, ROWS = 3, 3  # optimizer steps; queries of a rank's micro-batch


@dataclass(frozen=True)
class Run:
    """One training run of the real step. flags: keys of the configuration."""

    stages: tuple[int, int] = (2, 2)
    precision: str = "fp32"
    accumulation: int = 1
    flags: dict[str, Any] = field(default_factory=dict)

    @property
    def world_pool(self) -> bool:
        return self.flags.get("pool") == "world"


@dataclass
class Found:
    losses: list[float]
    gradients: dict[str, torch.Tensor]  # of the first step
    start: dict[str, torch.Tensor]
    parameters: dict[str, torch.Tensor]  # after the last
    totals: dict[str, float]
    sums: list[dict[str, float]]


def options(run: Run) -> dict[str, Any]:
    defaults: dict[str, Any] = {"candidates": "all", "learn_temperature": True}
    return defaults | run.flags


def train_real(runs: list[Run]) -> list[Found]:
    """Each run on this group of ranks."""
    return [train_one(run) for run in runs]


def train_one(run: Run) -> Found:
    case = Case(run.stages, run.precision)

    def engine(name: str, module: Any) -> Any:
        return make_engine(module, ds_config(case, NAMES.index(name)), OPTIM, LEARNING_RATES[name])

    parts = small_parts(run.accumulation, ROWS, engine=engine, **options(run))
    start = parameters(parts.engines)
    found = Found([], {}, start, {}, {}, [])
    step = parts.engines.step

    def keep_gradients(factor: float, skip: bool = False) -> Any:
        found.gradients = found.gradients or full_gradients(parts.engines)
        return step(factor, skip=skip)

    parts.engines.step = keep_gradients  # type: ignore[method-assign]
    for n in range(STEPS):
        parts.engines.train()
        outputs, found.totals, _ = train_step(parts, n, 1.0)
        found.losses.append(collectives.all_sum({"loss": sum(o.loss for o in outputs)})["loss"])
        found.sums.append({k: sum(o.sums.get(k, 0.0) for o in outputs) for k in outputs[0].sums})
    found.parameters = parameters(parts.engines)
    for which, (name, held) in enumerate(parts.engines.learning.items()):
        assert run.stages[which] < 3 or not any(p.numel() for p in held.module.parameters()), f"{name} is in pieces"
    return found


def plain_run(run: Run, world: int) -> Found:
    """The same in this process: the ranks' micro-batches one after the other, or joined to one for a common pool."""
    batch, micros = (ROWS * world, run.accumulation) if run.world_pool else (ROWS, run.accumulation * world)
    parts = small_parts(micros, batch, **options(run) | {"pool": "rank", "share_prefixes": False})
    modules = {name: e.module for name, e in parts.engines.learning.items()}
    for p in [p for module in parts.engines.modules.values() for p in module.parameters()]:
        p.data = p.to(DTYPES[run.precision]).float()
    optimizers = [adamw(module, OPTIM, LEARNING_RATES[name]) for name, module in modules.items()]
    found = Found([], {}, named(parts), {}, {}, [])
    for n in range(STEPS):
        for module in modules.values():
            module.zero_grad()
        parts.engines.train()
        loss = plain_loss(parts, n)
        loss.backward()
        found.losses.append(float(loss.detach()))
        if n == 0:
            of = {f"{name}.{k}": p for name, module in modules.items() for k, p in module.named_parameters()}
            found.gradients = {k: p.grad.clone() for k, p in of.items() if p.grad is not None}
        for optimizer in optimizers:
            optimizer.step()
    found.parameters = named(parts)
    return found


def named(parts: Parts) -> dict[str, torch.Tensor]:
    pairs = [(name, module.named_parameters()) for name, module in parts.engines.modules.items()]
    return {f"{name}.{k}": p.detach().clone() for name, params in pairs for k, p in params}
