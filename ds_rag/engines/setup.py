"""Makes the two engines from the settings and DeepSpeed's JSON files."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ds_rag.config import RunConfig, deepspeed_config, find_file
from ds_rag.config.deepspeed_config import Known
from ds_rag.config.deepspeed_config.optimizers import check_optimizer, check_schedule, check_with_deepspeed
from ds_rag.engines.deepspeed_engine import make_engine, shard_frozen
from ds_rag.engines.engine_pair import Engines
from ds_rag.models.generator import Generator
from ds_rag.models.retriever import Retriever
from ds_rag.runtime import collectives
from ds_rag.runtime.errors import UserError


def files(config: RunConfig) -> list[tuple[str, str]]:
    """(path of the DeepSpeed JSON, the flag that named it) for the retriever's engine, then the generator's."""
    run = config.run
    given = ((run.deepspeed_retriever, "--deepspeed_retriever"), (run.deepspeed_generator, "--deepspeed_generator"))
    return [(path, flag) if path else (run.deepspeed, "--deepspeed") for path, flag in given]


def read_files(config: RunConfig) -> list[dict[str, Any]]:
    """The contents of these files, checked. Raises UserError."""
    return [deepspeed_config.load(find_file(path, flag), flag) for path, flag in files(config)]


@dataclass(frozen=True)
class EnginePlan:
    """What one engine is made from: its DeepSpeed JSON, the flag that named the file, and the run's values that replace
    "auto"."""

    raw: dict[str, Any]
    flag: str
    known: Known

    @property
    def while_loading(self) -> dict[str, Any] | None:
        """The configuration for loading the model sharded; None: the model is not sharded while it is loaded."""
        return deepspeed_config.while_loading(self.raw, self.known)

    def resolved(self, total_steps: int, warmup: int, hidden_size: int) -> tuple[dict[str, Any], Known]:
        """The configuration with every "auto" replaced, and the values that were used for it. warmup: the run's steps
        of warm-up, unless the JSON has a number of its own."""
        steps = self.known.warmup_steps or warmup
        known = replace(self.known, total_steps=total_steps, hidden_size=hidden_size, warmup_steps=steps)
        return deepspeed_config.resolve(self.raw, known, self.flag), known


def plan_engines(config: RunConfig) -> dict[str, EnginePlan]:
    """The plan of each engine by model name. Literal values of the JSONs for batch size, accumulation and clipping are
    written into `config`."""
    optim, raws = config.optim, read_files(config)
    for raw, (_, flag) in zip(raws, files(config), strict=True):
        check_optimizer(raw, flag)
        check_schedule(raw, config.explicit, flag)
        check_with_deepspeed(raw, flag)
    known = Known(
        per_device_batch=optim.per_device_train_batch_size,
        accumulation=optim.gradient_accumulation_steps,
        world=collectives.world(),
        max_grad_norm=optim.max_grad_norm,
        learning_rate=optim.learning_rate,
        betas=(optim.adam_beta1, optim.adam_beta2),
        eps=optim.adam_epsilon,
        weight_decay=optim.weight_decay,
        warmup_steps=optim.warmup_steps,
        total_steps=max(1, optim.max_steps),
        precision=choose_precision(config),
        explicit=config.explicit,
    )
    rates = (optim.retriever_learning_rate, optim.generator_learning_rate)
    flags = [flag for _, flag in files(config)]
    knowns = list(deepspeed_config.adopt_pair(raws[0], raws[1], known, (flags[0], flags[1])))
    knowns = [k if rate is None else replace(k, learning_rate=rate) for k, rate in zip(knowns, rates, strict=True)]
    shared = knowns[0]
    optim.per_device_train_batch_size = shared.per_device_batch
    optim.gradient_accumulation_steps = shared.accumulation
    optim.max_grad_norm = shared.max_grad_norm
    if shared.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("fp16 needs a GPU", found="no CUDA device", expected="--bf16, or neither flag (fp32)")
    plans = [EnginePlan(raw, flag, known) for raw, flag, known in zip(raws, flags, knowns, strict=True)]
    return {"retriever": plans[0], "generator": plans[1]}


def choose_precision(config: RunConfig) -> str:
    """bf16 or fp16 if a flag asks for it; by default bf16 on a GPU that supports it, else fp32."""
    optim = config.optim
    if optim.fp16:
        return "fp16"
    if optim.bf16 is None and optim.fp16 is None:
        return "bf16" if bf16_in_hardware() else "fp32"
    return "bf16" if optim.bf16 else "fp32"


def bf16_in_hardware() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def make_engines(
    config: RunConfig,
    plans: dict[str, EnginePlan],
    models: tuple[Retriever, Generator | None],
    learns: dict[str, bool],
    total_steps: int,
    folder: Path,
    device: torch.device,
) -> Engines:
    """A DeepSpeed engine around each model that is trained. learns: is it, by model name. The resolved configurations
    are written to the run's folder."""
    parts: dict[str, Any] = {}
    for (name, plan), module in zip(plans.items(), models, strict=True):
        if module is None:
            parts[name] = None
            continue
        resolved, known = plan.resolved(total_steps, config.optim.warmup(total_steps), module.hidden_size)
        if collectives.rank() == 0 and learns[name]:
            (folder / f"deepspeed_{name}.json").write_text(json.dumps(resolved, indent=1), encoding="utf-8")
        if learns[name]:
            parts[name] = make_engine(module, resolved, config.optim, known.learning_rate)
        elif resolved["zero_optimization"]["stage"] == 3:
            parts[name] = shard_frozen(module, resolved)
        else:
            parts[name] = frozen(module, device, known.precision)
    return Engines(parts["retriever"], parts["generator"], config.optim.max_grad_norm)


def frozen(module: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """Freezes a module and moves it to the device and precision that its engine would have used."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for parameter in module.requires_grad_(False).eval().parameters():
        if parameter.is_floating_point():  # 4-bit weights are stored as integers
            parameter.data = parameter.data.to(dtype)  # buffers stay: rounded rotary frequencies distort positions
    return module.to(device)
