"""A model in a DeepSpeed engine, and what the joint step needs from that engine at each ZeRO stage.

Clipping and skipping are decided for both engines at once, which DeepSpeed cannot do. For this the file reads a few
attributes of its optimizers; a test covers each of them.

The optimizer that DeepSpeed 0.19.8 uses for each stage and precision, and the dtype in which micro-batches accumulate:

    stage  precision   engine.optimizer         gradients live in                accumulates in
    0      fp32        the plain torch one      p.grad                           fp32
    0      bf16, fp16  FP16_UnfusedOptimizer    p.grad                           bf16, fp16
    1      bf16        BF16_Optimizer           fp32_groups_gradients, unsharded fp32
    1      fp32, fp16  DeepSpeedZeroOptimizer   averaged_gradients               fp32
    2      all         DeepSpeedZeroOptimizer   averaged_gradients               fp32
    3      all         ..ZeroOptimizer_Stage3   averaged_gradients               fp32
                                                (half precision at stages 1 to 3: fp32 because of
                                                `grad_accum_dtype`)
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
    """A DeepSpeed engine around `module`, which is cast in place to the precision of the configuration.

    If the configuration has an optimizer, that one is used with its learning rate; else AdamW as in `optimizer.py`.
    """
    import deepspeed

    prepare(module, ds_config)
    client = None if "optimizer" in ds_config else adamw(module, optim, learning_rate)
    engine, *_ = deepspeed.initialize(
        model=module, model_parameters=param_groups(module), optimizer=client, config=ds_config
    )
    if is_half_wrapper(engine.optimizer):
        # DeepSpeed has created the optimizer's state by a step with zero gradients. That step counts as Adam's first
        # and decays the master weights, so it is undone.
        engine.optimizer.refresh_fp32_params()
        engine.optimizer.state.clear()
    return engine


def prepare(module: nn.Module, ds_config: dict[str, Any]) -> None:
    """Prepares a module that was loaded sharded for stage 3: parameters that are not sharded (adapters, a temperature)
    get the dtype of the sharded ones."""
    types = {p.dtype for p in module.parameters() if hasattr(p, "ds_id")}
    for p in module.parameters():
        if types and not hasattr(p, "ds_id"):
            p.data = p.data.to(next(iter(types)))
    allow_another()


def shard_frozen(module: nn.Module, ds_config: dict[str, Any]) -> nn.Module:
    """A frozen module, sharded over the ranks under a stage-3 configuration. The module itself is to be called, not an
    engine."""
    import deepspeed

    prepare(module, ds_config)
    without = {key: value for key, value in ds_config.items() if key not in ("optimizer", "scheduler")}
    engine, *_ = deepspeed.initialize(model=module.requires_grad_(False).eval(), config=without)
    module.__dict__["held_by"] = engine  # keeps the engine alive, and with it the hooks that gather shards
    return module


def is_bare(engine: Any) -> bool:
    """Stage 0 in fp32: the engine's optimizer is the plain torch one."""
    return isinstance(engine.optimizer, torch.optim.Optimizer)


def is_half_wrapper(optimizer: Any) -> bool:
    """Stage 0 in bf16 or fp16: FP16_UnfusedOptimizer (or, around DeepSpeed's FusedAdam, FP16_Optimizer)."""
    return hasattr(optimizer, "loss_scale_config")


def scale_may_shrink(engine: Any) -> bool:
    """Is the loss scale dynamic and above its minimum?"""
    if is_half_wrapper(engine.optimizer):
        scale = engine.optimizer.loss_scale_config
        return bool(scale.dynamic_loss_scale) and scale.cur_scale > scale.min_loss_scale
    scaler: Any = getattr(engine.optimizer, "loss_scaler", None)
    return bool(getattr(scaler, "dynamic", False)) and scaler.cur_scale > scaler.min_scale


def held_gradients(engine: Any) -> list[torch.Tensor]:
    """The gradients that the next `engine.step()` reads on this rank: with ZeRO those of its shard, else all."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "averaged_gradients"):  # ZeRO 1 to 3
        return [g for group in optimizer.averaged_gradients.values() if group for g in group if g is not None]
    if hasattr(optimizer, "get_grads_for_norm"):  # BF16_Optimizer: reduced, on every rank
        return list(optimizer.get_grads_for_norm(for_clipping=True))
    return [p.grad for p in engine.module.parameters() if p.grad is not None]


def gradient_norm(engine: Any) -> float:
    """The gradient norm of one model over all ranks, without the loss scale. NaN, infinite or negative if a gradient is
    not finite."""
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
    """Makes the next `engine.step()` multiply the gradient by `factor` (at most 1). norm: that of the gradient."""
    if not is_bare(engine):
        # DeepSpeed divides by (norm + 1e-6) / clip_grad if that is above 1. It is set at every step, because
        # a checkpoint stores the last value.
        engine.optimizer.clip_grad = factor * (norm + 1e-6) if factor < 1 else 0.0
    elif factor < 1:
        torch._foreach_mul_(held_gradients(engine), factor)


def skip_step(engine: Any) -> None:
    """Makes the engine drop its gradients, shrink its loss scale and count the step, as DeepSpeed does on overflow."""
    if is_bare(engine):  # has no overflow handling
        engine.zero_grad()
        engine.global_steps += 1
        engine.skipped_steps += 1
        return
    optimizer = engine.optimizer
    scaler: Any = getattr(optimizer, "loss_scaler", None)
    if hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False  # else DeepSpeed raises at the first skip at the minimum
    offload = getattr(optimizer, "cpu_offload", False)  # stages 1 and 2
    if offload or getattr(optimizer, "offload_optimizer", False):  # the norms were computed in the backward
        norms = optimizer.norm_for_param_grads
        optimizer.norm_for_param_grads = dict.fromkeys(norms, torch.tensor(math.inf))
    else:
        held_gradients(engine)[0].fill_(math.inf)
    engine.step()
    assert not engine.was_step_applied(), "DeepSpeed stepped on a gradient that is not finite"
    if offload:  # else DeepSpeed adds the next step's gradients to these
        optimizer.averaged_gradients = dict.fromkeys(optimizer.averaged_gradients)
