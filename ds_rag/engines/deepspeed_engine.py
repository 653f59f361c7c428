"""A model in a DeepSpeed engine, and what the joint step reads of it at each ZeRO stage.

Clipping and skipping are decided for both engines at once, which DeepSpeed does not do; this file reads a few
attributes of its optimizers for that, each held by a test.

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
from typing import Any

import torch
from torch import nn

from ds_rag.config import OptimConfig
from ds_rag.engines.optimizer import adamw, param_groups
from ds_rag.models.sharded import allow_another


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
