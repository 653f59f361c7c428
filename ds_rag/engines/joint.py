"""The pair of DeepSpeed engines: initialise, and the joint step (skip, clip, step).

Each model has its own engine and its own backward, started from its own outputs and a cached gradient, so
no autograd graph spans the two. Clipping and skipping must then be decided for both at once, which DeepSpeed
does not do; this file reads a few attributes of its optimizers for that, each held by a test. Both
configurations carry `gradient_accumulation_steps: 1` and `gradient_clipping: 0.0`: both are ours.

What DeepSpeed 0.19.8 makes of a stage and a precision, and in which type micro-batches accumulate:

    stage  precision   engine.optimizer         gradients live in                accumulates in
    0      fp32        the plain torch one      p.grad                           fp32
    0      bf16, fp16  FP16_UnfusedOptimizer    p.grad                           bf16, fp16
    1      bf16        BF16_Optimizer           fp32_groups_gradients, unsharded fp32
    1      fp32, fp16  DeepSpeedZeroOptimizer   averaged_gradients               fp32
    2      all         DeepSpeedZeroOptimizer   averaged_gradients               fp32
    3      all         ..ZeroOptimizer_Stage3   averaged_gradients               fp32
                                                (fp32 of stages 1 to 3 in the half types: `grad_accum_dtype`)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ds_rag.config import OptimConfig
from ds_rag.models.sharded import allow_another, is_sharded, shape_of, whole_state


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


def param_groups(module: nn.Module) -> list[dict[str, Any]]:
    """What is trainable: matrices, and (without weight decay) the rest: biases, norms, scalars."""
    params = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in params if len(shape_of(p)) >= 2]},
        {"params": [p for p in params if len(shape_of(p)) < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(module: nn.Module, optim: OptimConfig, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW over `param_groups`."""
    return torch.optim.AdamW(
        param_groups(module),
        lr=learning_rate,
        betas=(optim.adam_beta1, optim.adam_beta2),
        eps=optim.adam_epsilon,
        weight_decay=optim.weight_decay,
        fused=True,  # on CPU a tenth of the default's time
    )


def make_engine(module: nn.Module, ds_config: dict[str, Any], optim: OptimConfig, learning_rate: float) -> Any:
    """A DeepSpeed engine around `module`, which is cast in place to the configuration's precision.

    The optimizer is ours unless the configuration has one; then its own learning rate holds.
    """
    import deepspeed

    prepare(module, ds_config)
    client = None if "optimizer" in ds_config else adamw(module, optim, learning_rate)
    engine, *_ = deepspeed.initialize(
        model=module, model_parameters=param_groups(module), optimizer=client, config=ds_config
    )
    if is_half_wrapper(engine.optimizer):
        # It made the optimizer's state by a step on zero gradients, which counts as Adam's first and decays
        # the master weights: take it back.
        engine.optimizer.refresh_fp32_params()
        engine.optimizer.state.clear()
    return engine


def prepare(module: nn.Module, ds_config: dict[str, Any]) -> None:
    """What stage 3 wants of a module whose weights came in pieces: the rest (adapters, a temperature) in their type."""
    types = {p.dtype for p in module.parameters() if hasattr(p, "ds_id")}
    for p in module.parameters():
        if types and not hasattr(p, "ds_id"):
            p.data = p.data.to(next(iter(types)))
    allow_another()


def hold_frozen(module: nn.Module, ds_config: dict[str, Any]) -> nn.Module:
    """A module that does not learn, in pieces on the ranks under a stage-3 configuration; to be called as it is."""
    import deepspeed

    prepare(module, ds_config)
    without = {key: value for key, value in ds_config.items() if key not in ("optimizer", "scheduler")}
    engine, *_ = deepspeed.initialize(model=module.requires_grad_(False).eval(), config=without)
    module.__dict__["held_by"] = engine  # whose end would take the hooks that gather the pieces along
    return module


class Engines:
    """Retriever and generator, each a DeepSpeed engine, or a plain module where it does not learn.

    `retriever` and `generator` are called as modules; `generator` is None where the objective needs none. To
    be built before a checkpoint is loaded into the engines: it notes their peak learning rates. One step:

        for m, batch in enumerate(micro_batches):
            engines.boundary(m == len(micro_batches) - 1)
            outputs = engines.retriever(...)          # each forward has its backward before the next
            leaves = [x.detach().float().requires_grad_() for x in outputs]
            objective(leaves).backward()              # divided by the micro-batches: `backward` only sums
            engines.backward("retriever", outputs, [leaf.grad for leaf in leaves])
        engines.step(lr_factor)
    """

    def __init__(self, retriever: Any, generator: Any, max_grad_norm: float):
        self.retriever, self.generator, self.max_grad_norm = retriever, generator, max_grad_norm
        self.learning = {
            name: e
            for name, e in (("retriever", retriever), ("generator", generator))
            if hasattr(e, "set_gradient_accumulation_boundary")  # an engine, not a plain module
        }
        self.base_lrs = {name: [group["lr"] for group in e.optimizer.param_groups] for name, e in self.learning.items()}

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The models without their engines, by name."""
        pairs = (("retriever", self.retriever), ("generator", self.generator))
        return {name: e.module if name in self.learning else e for name, e in pairs if e is not None}

    def whole_state(self, name: str, keep: bool) -> dict[str, torch.Tensor]:
        """A model's whole `state_dict`, of this stage or that; `keep` as in `sharded.whole_state`. On all ranks."""
        self.settle(name)
        return whole_state(self.modules[name], keep)

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
        shrink = self.max_grad_norm / joint if 0 < self.max_grad_norm < joint else 1.0
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


def is_bare(engine: Any) -> bool:
    """Stage 0 in fp32: the engine's optimizer is the plain torch one."""
    return isinstance(engine.optimizer, torch.optim.Optimizer)


def is_half_wrapper(optimizer: Any) -> bool:
    """Stage 0 in bf16 or fp16: FP16_UnfusedOptimizer (or, around DeepSpeed's FusedAdam, FP16_Optimizer)."""
    return hasattr(optimizer, "loss_scale_config")


def scale_may_shrink(engine: Any) -> bool:
    """Is the loss scale a dynamic one that is above its minimum?"""
    if is_half_wrapper(engine.optimizer):
        scale = engine.optimizer.loss_scale_config
        return bool(scale.dynamic_loss_scale) and scale.cur_scale > scale.min_loss_scale
    scaler: Any = getattr(engine.optimizer, "loss_scaler", None)
    return bool(getattr(scaler, "dynamic", False)) and scaler.cur_scale > scaler.min_scale


def held_gradients(engine: Any) -> list[torch.Tensor]:
    """The gradients that the next `engine.step()` reads on this rank: ZeRO's share, else all of them."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "averaged_gradients"):  # ZeRO 1 to 3
        return [g for group in optimizer.averaged_gradients.values() if group for g in group if g is not None]
    if hasattr(optimizer, "get_grads_for_norm"):  # BF16_Optimizer: reduced, on every rank
        return list(optimizer.get_grads_for_norm(for_clipping=True))
    return [p.grad for p in engine.module.parameters() if p.grad is not None]


def own_norm(engine: Any) -> float:
    """One model's unscaled gradient norm over all ranks; not finite, or negative, if a gradient is not."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "scaled_global_norm"):
        norm = float(optimizer.scaled_global_norm())
    elif hasattr(optimizer, "_get_norm_groups"):  # stage 3
        from deepspeed.runtime.utils import combine_grad_norm_groups

        norm = float(combine_grad_norm_groups(optimizer._get_norm_groups()))
    else:
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in held_gradients(engine)]
        norm = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
    return norm / getattr(optimizer, "loss_scale", 1.0)


def scale_gradients(engine: Any, factor: float, norm: float) -> None:
    """The next `engine.step()` uses `factor` (at most 1) times the gradient, whose norm is `norm`."""
    if not is_bare(engine):
        # DeepSpeed divides by (norm + 1e-6) / clip_grad if that is above 1. Set at every step, for a
        # checkpoint stores the last value.
        engine.optimizer.clip_grad = factor * (norm + 1e-6) if factor < 1 else 0.0
    elif factor < 1:
        torch._foreach_mul_(held_gradients(engine), factor)


def skip_step(engine: Any) -> None:
    """The engine drops its gradients, shrinks its loss scale and counts the step, as at its own overflow."""
    if is_bare(engine):  # has none
        engine.zero_grad()
        engine.global_steps += 1
        engine.skipped_steps += 1
        return
    optimizer = engine.optimizer
    scaler: Any = getattr(optimizer, "loss_scaler", None)
    if hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False  # DeepSpeed would end the run at the first skip there
    offload = getattr(optimizer, "cpu_offload", False)  # stages 1 and 2
    if offload or getattr(optimizer, "offload_optimizer", False):  # the norms were kept from the backward
        norms = optimizer.norm_for_param_grads
        optimizer.norm_for_param_grads = dict.fromkeys(norms, torch.tensor(math.inf))
    else:
        held_gradients(engine)[0].fill_(math.inf)
    engine.step()
    assert not engine.was_step_applied(), "DeepSpeed stepped on a gradient that is not finite"
    if offload:  # DeepSpeed would add the next step's gradients to these
        optimizer.averaged_gradients = dict.fromkeys(optimizer.averaged_gradients)
