"""The two engines treated as one: the joint step (common skip, joint clipping, one learning-rate factor).

Each model has an engine and a backward pass of its own, which starts from that model's outputs and their cached
gradient, so no autograd graph spans the two models. Clipping and skipping are therefore decided here, for both at once;
the DeepSpeed configurations are given `gradient_accumulation_steps: 1` and `gradient_clipping: 0.0`.
An engine is DeepSpeed's (`deepspeed_engine.py`, which handles the ZeRO stages) or a `PlainEngine` (`plain.py`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ds_rag.engines.clipping import shrink_to
from ds_rag.engines.deepspeed_engine import (
    gradient_norm,
    is_half_wrapper,
    scale_gradients,
    scale_may_shrink,
    skip_step,
)
from ds_rag.models.sharded import full_state, is_sharded
from ds_rag.runtime.errors import UserError


@dataclass(frozen=True)
class StepResult:
    """What the joint step did.

    grad_norm: the joint norm of the gradients before clipping; NaN if skipped. skipped: no model was updated.
    not_finite: names of the models with a gradient that is not finite. loss_scale: the smallest loss scale of the
    engines before the step. scale_may_shrink: one of them is dynamic and above its minimum.
    """

    grad_norm: float
    skipped: bool
    not_finite: tuple[str, ...] = ()
    loss_scale: float = 1.0
    scale_may_shrink: bool = False


class Engines:
    """Retriever and generator, each in an engine, or as a frozen module if it is not trained.

    `retriever` and `generator` are called like modules; `generator` may be None for an objective without one. Build
    this before loading a checkpoint into the engines, because it records their peak learning rates.
    max_grad_norm: the joint gradient norm of both models is clipped to this value; 0 for no clipping.
    Raises UserError for a module that is neither an engine nor frozen, because no step would update it. One step:

        for m, batch in enumerate(micro_batches):
            engines.boundary(m == len(micro_batches) - 1)
            outputs = engines.retriever(...)          # each forward has its backward before the next
            leaves = [x.detach().float().requires_grad_() for x in outputs]
            objective(leaves).backward()              # divided by the micro-batches: `backward` only sums
            engines.backward("retriever", outputs, [leaf.grad for leaf in leaves])
        engines.step(lr_factor)

    Example:
        >>> engines = ds_rag.Engines(ds_rag.PlainEngine(retriever), generator.requires_grad_(False), max_grad_norm=1.0)
        >>> outputs = engines.retriever(retriever.tokens(["who ?"], "query"), retriever.tokens(["ann"], "passage"))
        >>> engines.backward("retriever", outputs, [torch.ones_like(x) for x in outputs])
        >>> result = engines.step(lr_factor=0.5)
        >>> sorted(engines.learning), result.skipped
        (['retriever'], False)
    """

    def __init__(self, retriever: Any, generator: Any, max_grad_norm: float):
        self.retriever, self.generator, self.max_grad_norm = retriever, generator, max_grad_norm
        pairs = {"retriever": retriever, "generator": generator}
        self.learning = {name: e for name, e in pairs.items() if is_engine(e)}
        for name, module in pairs.items():
            if module is not None and name not in self.learning:
                refuse_trainable(name, module)
        self.base_lrs = {name: [group["lr"] for group in e.optimizer.param_groups] for name, e in self.learning.items()}

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The models without their engines, by name."""
        pairs = (("retriever", self.retriever), ("generator", self.generator))
        return {name: e.module if name in self.learning else e for name, e in pairs if e is not None}

    def full_state(self, name: str, keep: bool) -> dict[str, torch.Tensor]:
        """A model's `state_dict` with full parameters, at any ZeRO stage. A collective; `keep` as in
        `sharded.full_state`."""
        self.settle(name)
        return full_state(self.modules[name], keep)

    def settle(self, name: str) -> None:
        """Completes a ZeRO-3 engine's prefetches. To be called before parameters are gathered outside a forward."""
        module = self.modules[name]
        engine = self.learning.get(name) or module.__dict__.get("held_by")
        if engine is not None and is_sharded(module):
            engine.empty_partition_cache()

    def train(self, mode: bool = True) -> None:
        """Sets training mode for the models that are trained; frozen models stay in evaluation mode."""
        for name, module in self.modules.items():
            module.train(mode and name in self.learning)

    def boundary(self, last: bool, only: Collection[str] | None = None) -> None:
        """To be called before every forward. last: the backward of that forward is the engine's last one in this
        optimizer step. only: the names of the engines meant; None: all."""
        for name, engine in self.learning.items():
            if only is None or name in only:
                engine.set_gradient_accumulation_boundary(last)

    def backward(self, name: str, outputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None]) -> None:
        """Sends cached gradients through one engine, as the backward of `sum(output * sg(gradient))` (chain rule).

        outputs: what the engine returned. gradients: those of the objective with respect to `outputs`; None counts as
        zero, so that every rank runs the same backward. Does nothing for a frozen model.
        """
        if name not in self.learning:
            return
        engine = self.learning[name]
        surrogate = sum(
            (output.to(torch.promote_types(output.dtype, torch.float32)) * (0.0 if grad is None else grad)).sum()
            for output, grad in zip(outputs, gradients, strict=True)
            if output.requires_grad
        )
        if is_half_wrapper(engine.optimizer):
            # At stage 0 the engine does not scale the loss, but its optimizer divides by the loss scale.
            surrogate = surrogate * engine.optimizer.loss_scale
        engine.backward(surrogate, scale_wrt_gas=False)

    def step(self, lr_factor: float, only: Collection[str] | None = None, skip: bool = False) -> StepResult:
        """One optimizer step of all trained models (or of those in `only`), or of none of them.

        lr_factor: multiplies the peak learning rates, except of an engine whose DeepSpeed configuration has a
        scheduler. skip: skip the step, whatever the gradients are; must be the same on all ranks.

        If any gradient of any model is not finite, all models skip the step on every rank, and their loss scales
        shrink together. The norms are those of the averaged gradients and therefore equal on all ranks, so that all
        ranks decide alike.
        """
        engines = {name: e for name, e in self.learning.items() if only is None or name in only}
        assert engines, f"no model to update: {only} of {sorted(self.learning)}"
        norms = {name: gradient_norm(engine) for name, engine in engines.items()}
        not_finite = tuple(name for name, n in norms.items() if not (math.isfinite(n) and n >= 0))
        skip = skip or bool(not_finite)
        scale = min(getattr(e.optimizer, "loss_scale", 1.0) for e in engines.values())
        may_shrink = any(scale_may_shrink(e) for e in engines.values())
        joint = math.nan if skip else math.hypot(*norms.values())
        shrink = shrink_to(self.max_grad_norm, joint)
        for name, engine in engines.items():
            if engine.lr_scheduler is None:
                for group, lr in zip(engine.optimizer.param_groups, self.base_lrs[name], strict=True):
                    group["lr"] = lr * lr_factor
            if skip:
                skip_step(engine)
            else:
                scale_gradients(engine, shrink, norms[name])
                engine.step()
                assert engine.was_step_applied(), f"DeepSpeed skipped the step of the {name} only"
        return StepResult(joint, skip, not_finite, float(scale), may_shrink)


def is_engine(module: Any) -> bool:
    """Is it an engine rather than a plain module?"""
    return hasattr(module, "set_gradient_accumulation_boundary")


def refuse_trainable(name: str, module: nn.Module) -> None:
    """Raises UserError if a module without an engine has trainable parameters."""
    trainable = [key for key, p in module.named_parameters() if p.requires_grad]
    if trainable:
        raise UserError(
            f"the {name} is a plain module with trainable parameters: no step would change them",
            found=f"{len(trainable)} with requires_grad, the first {trainable[0]}",
            expected="an engine, or a module without trainable parameters",
            fix=f"PlainEngine({name}), make_engine({name}, ...), or {name}.requires_grad_(False)",
        )
