"""The pair of DeepSpeed engines: initialise, and the joint step (skip, clip, step).

Each model has its own engine and its own backward, started from its own outputs and a cached gradient, so no
autograd graph spans the two. Clipping and skipping must then be decided for both at once, which DeepSpeed does not
do; this file reads a few attributes of its optimizers for that, each held by a test. Both configurations carry
`gradient_accumulation_steps: 1` and `gradient_clipping: 0.0`: accumulation and clipping are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ds_rag.config import OptimConfig


@dataclass(frozen=True)
class StepResult:
    """What the joint step did: the norm before clipping (both models), and whether the step was skipped."""

    grad_norm: float
    skipped: bool


def adamw(module: nn.Module, optim: OptimConfig, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW over what is trainable; weight decay on matrices only (not on biases and norms)."""
    params = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=learning_rate,
        betas=(optim.adam_beta1, optim.adam_beta2),
        eps=optim.adam_epsilon,
        fused=True,  # on CPU a tenth of the default's time
    )


def make_engine(
    module: nn.Module, ds_config: dict[str, Any], optim: OptimConfig, learning_rate: float
) -> Any:
    """A DeepSpeed engine around `module`; the optimizer is ours unless the configuration has one."""
    import deepspeed

    client = None if "optimizer" in ds_config else adamw(module, optim, learning_rate)
    params = [p for p in module.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=module, model_parameters=params, optimizer=client, config=ds_config
    )
    return engine


class Engines:
    """Retriever and generator, each a DeepSpeed engine, or a plain module where it does not learn.

    `retriever` and `generator` are called as modules; `generator` is None where the objective needs none.
    """

    def __init__(self, retriever: Any, generator: Any, max_grad_norm: float):
        self.retriever, self.generator, self.max_grad_norm = retriever, generator, max_grad_norm
        self.learning = {
            name: e
            for name, e in (("retriever", retriever), ("generator", generator))
            if hasattr(e, "backward")
        }
        self.base_lrs = {
            name: [group["lr"] for group in e.optimizer.param_groups] for name, e in self.learning.items()
        }

    @property
    def modules(self) -> dict[str, nn.Module]:
        pairs = (("retriever", self.retriever), ("generator", self.generator))
        return {name: getattr(e, "module", e) for name, e in pairs if e is not None}

    def train(self, mode: bool = True) -> None:
        for name, module in self.modules.items():
            module.train(mode and name in self.learning)

    def boundary(self, last: bool) -> None:
        """To be called before the forward of every micro-batch: is it the last of its optimizer step?"""
        for engine in self.learning.values():
            engine.set_gradient_accumulation_boundary(last)

    def backward(self, name: str, outputs: list[torch.Tensor], leaves: list[torch.Tensor]) -> None:
        """Sends the leaves' cached gradients through one engine: d(sum output * sg(grad)) = the chain rule.

        outputs are what the engine returned, leaves their detached copies after the objective's backward.
        """
        pairs = [(o, leaf.grad) for o, leaf in zip(outputs, leaves, strict=True)]
        if name not in self.learning:
            return
        surrogate = sum((o.float() * (0.0 if g is None else g)).sum() for o, g in pairs if o.requires_grad)
        self.learning[name].backward(surrogate, scale_wrt_gas=False)

    def step(self, lr_factor: float) -> StepResult:
        """One optimizer step of both, or of neither: a non-finite gradient anywhere skips all, on every rank.

        The norms are those of the averaged gradients, equal on all ranks, so every rank decides alike.
        """
        norms = {name: own_norm(engine) for name, engine in self.learning.items()}
        skip = not all(math.isfinite(n) and n >= 0 for n in norms.values())
        joint = math.nan if skip else math.sqrt(sum(n * n for n in norms.values()))
        clip = 0 < self.max_grad_norm < joint
        for name, engine in self.learning.items():
            if skip:
                poison(engine)
            else:
                set_clip(engine, self.max_grad_norm * norms[name] / joint if clip else 0.0, norms[name])
            for group, lr in zip(engine.optimizer.param_groups, self.base_lrs[name], strict=True):
                group["lr"] = lr * lr_factor
            if not (skip and is_bare(engine)):
                engine.step()
        return StepResult(joint, skip)


def is_bare(engine: Any) -> bool:
    """Stage 0 in fp32: the engine's optimizer is the plain torch one."""
    return isinstance(engine.optimizer, torch.optim.Optimizer)


def held_gradients(engine: Any) -> list[torch.Tensor]:
    """The gradients that the next `engine.step()` reads on this rank: all of them at stage 0, a share above."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "averaged_gradients"):  # ZeRO 1 and 2
        return [g for group in optimizer.averaged_gradients.values() if group for g in group if g is not None]
    if hasattr(optimizer, "get_grads_for_norm"):  # BF16_Optimizer
        return list(optimizer.get_grads_for_norm(for_clipping=True))
    return [p.grad for p in engine.module.parameters() if p.grad is not None]


def own_norm(engine: Any) -> float:
    """One model's gradient norm over all ranks, unscaled; negative or not finite if a gradient is not finite."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "scaled_global_norm"):
        norm = float(optimizer.scaled_global_norm())
    else:
        grads = held_gradients(engine)
        norm = (
            float(torch.linalg.vector_norm(torch.stack([g.float().norm() for g in grads]))) if grads else 0.0
        )
    return norm / getattr(optimizer, "cur_scale", getattr(optimizer, "loss_scale", 1.0))


def set_clip(engine: Any, clip_to: float, norm: float) -> None:
    """The next step scales this model's gradient from `norm` down to `clip_to`; 0: leaves it as it is."""
    if not is_bare(engine):
        engine.optimizer.clip_grad = clip_to  # also 0.0: a checkpoint stores the last value
    elif clip_to:
        for grad in held_gradients(engine):
            grad.mul_(clip_to / norm)


def poison(engine: Any) -> None:
    """Makes the engine skip by its own means (loss scale, clean-up); at bare stage 0 drops the gradients."""
    if is_bare(engine):
        engine.zero_grad()
        engine.optimizer.zero_grad()
        return
    for grad in held_gradients(engine):
        if grad.numel():
            grad.view(-1)[0] = math.inf
            return
