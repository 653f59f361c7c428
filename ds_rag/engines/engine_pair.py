"""The two engines as one: the joint step (common skip, joint clipping, one learning-rate factor).

Each model has its own engine and its own backward, started from its own outputs and a cached gradient, so
no autograd graph spans the two. Clipping and skipping must then be decided for both at once: DeepSpeed's
configurations carry `gradient_accumulation_steps: 1` and `gradient_clipping: 0.0`, both are ours.
An engine is DeepSpeed's (`deepspeed_engine.py`, where the stages differ) or a `PlainEngine` (`plain.py`).
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
    is_half_wrapper,
    own_norm,
    scale_gradients,
    scale_may_shrink,
    skip_step,
)
from ds_rag.models.sharded import full_state, is_sharded
from ds_rag.runtime.errors import UserError


@dataclass(frozen=True)
class StepResult:
    """What the joint step did: the norm before clipping (all stepped models), and whether it was skipped.

    not_finite: the models whose gradients were the reason. loss_scale: the smallest that the step had.
    scale_may_shrink: it is a dynamic one above its minimum.
    """

    grad_norm: float
    skipped: bool
    not_finite: tuple[str, ...] = ()
    loss_scale: float = 1.0
    scale_may_shrink: bool = False


class Engines:
    """Retriever and generator, each an engine, or a frozen module where it is not trained.

    `retriever` and `generator` are called as modules; `generator` is None where the objective needs none. To
    be built before a checkpoint is loaded into the engines: it notes their peak learning rates.
    max_grad_norm: both models' gradients together are clipped to it; 0 for no clipping.
    Raises UserError for a module that is neither an engine nor frozen: it would never be stepped. One step:

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
        """A model's whole `state_dict`, of this stage or that; `keep` as in `sharded.full_state`. On all ranks."""
        self.settle(name)
        return full_state(self.modules[name], keep)

    def settle(self, name: str) -> None:
        """Before parameters of ZeRO-3 are gathered outside of a forward: those fetched ahead are still on their way."""
        module = self.modules[name]
        engine = self.learning.get(name) or module.__dict__.get("held_by")
        if engine is not None and is_sharded(module):
            engine.empty_partition_cache()

    def train(self, mode: bool = True) -> None:
        """Training mode for what learns; a model that does not learn stays in evaluation mode."""
        for name, module in self.modules.items():
            module.train(mode and name in self.learning)

    def boundary(self, last: bool, only: Collection[str] | None = None) -> None:
        """To be called before every forward of an engine (of `only` these): is its backward the last of the optimizer
        step?"""
        for name, engine in self.learning.items():
            if only is None or name in only:
                engine.set_gradient_accumulation_boundary(last)

    def backward(self, name: str, outputs: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None]) -> None:
        """Sends cached gradients through one engine: d(sum output * sg(grad)) = the chain rule.

        `outputs` are what the engine returned, `gradients` the objective's with respect to them. None counts as
        zero, so that every rank runs the same backward. Does nothing for a model that does not learn.
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
            # At stage 0 the engine leaves the loss unscaled, but its optimizer divides by the scale.
            surrogate = surrogate * engine.optimizer.loss_scale
        engine.backward(surrogate, scale_wrt_gas=False)

    def step(self, lr_factor: float, only: Collection[str] | None = None, skip: bool = False) -> StepResult:
        """One optimizer step of all that learns (or of `only` these), or of none. skip, the same on all ranks: of none,
        whatever the gradients are.

        A gradient that is not finite, in any of them, skips all on every rank; their loss scales then shrink
        together, as under one scaler. The norms are those of the averaged gradients, equal on all ranks, so
        every rank decides alike. `lr_factor` times the peak is the learning rate, except where the DeepSpeed
        configuration has a scheduler of its own.
        """
        engines = {name: e for name, e in self.learning.items() if only is None or name in only}
        assert engines, f"nothing to step: {only} of {sorted(self.learning)}"
        norms = {name: own_norm(engine) for name, engine in engines.items()}
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
                assert engine.was_step_applied(), f"DeepSpeed skips the {name} alone"
        return StepResult(joint, skip, not_finite, float(scale), may_shrink)


def is_engine(module: Any) -> bool:
    """Is it an engine, and not a plain module?"""
    return hasattr(module, "set_gradient_accumulation_boundary")


def refuse_trainable(name: str, module: nn.Module) -> None:
    """Raises UserError where a module that has no engine has trainable parameters."""
    trainable = [key for key, p in module.named_parameters() if p.requires_grad]
    if trainable:
        raise UserError(
            f"the {name} is a plain module with trainable parameters: no step would change them",
            found=f"{len(trainable)} with requires_grad, the first {trainable[0]}",
            expected="an engine, or a module without trainable parameters",
            fix=f"PlainEngine({name}), make_engine({name}, ...), or {name}.requires_grad_(False)",
        )
