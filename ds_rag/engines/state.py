"""The state of an engine as full tensors by parameter, independent of the ZeRO stage and the number of ranks.

Each stage shards the fp32 master weights and the optimizer's moments in its own way. Here every trainable parameter is
put together from its shards when it is saved, and sharded again when it is loaded. So a run can continue at another
stage or on another number of ranks, and a checkpoint contains only tensors and numbers, nothing to execute. The files
are those of state_files.py.

    parameter p, flat:   |------- rank 0's shard -------|------- rank 1's shard -------|   (a stage may add padding, or
                          start, views = held(...)                                          split at another element)

Where a shard is stored, by DeepSpeed's optimizer (the table in deepspeed_engine.py):

    plain torch optimizer       p itself and optimizer.state[p]; not sharded
    FP16_UnfusedOptimizer       fp32_groups and the inner optimizer's state; not sharded
    stages 1, 2; BF16_Optimizer p._hp_mapping
    stage 3                     fp32_partitioned_groups_flat, at grad_position
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ds_rag.engines.deepspeed_engine import is_bare, is_half_wrapper
from ds_rag.models.sharded import shape_of
from ds_rag.runtime import collectives

MASTER = "master"  # key of the fp32 weights, beside the optimizer's keys (exp_avg, ...)
COUNTERS = ("global_steps", "global_samples", "skipped_steps", "micro_steps")
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass
class Held:
    """This rank's shard of one parameter: flat views, which begin at element `start` of the full flat parameter."""

    start: int
    views: dict[str, torch.Tensor]  # by key: MASTER, exp_avg, ...
    replicated: bool = False  # not sharded: every rank has all elements


def trainable(engine: Any) -> dict[str, torch.nn.Parameter]:
    """The trainable parameters by name."""
    return {name: p for name, p in engine.module.named_parameters() if p.requires_grad}


def inner(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside DeepSpeed's."""
    optimizer = engine.optimizer
    return optimizer if is_bare(engine) else optimizer.optimizer


def flat_masters(engine: Any) -> list[torch.Tensor]:
    """The tensors that the inner optimizer updates; they are also the keys of its state."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # stage 3 gives them to the optimizer only during a step
        return list(optimizer.fp32_partitioned_groups_flat)
    return [p for group in inner(engine).param_groups for p in group["params"]]


def state_keys(engine: Any) -> list[str]:
    """Names of the optimizer's state tensors that have one element for each of the parameter's (exp_avg, ...). Empty on
    all ranks before the first step."""
    state = inner(engine).state
    keys = {
        key
        for master in flat_masters(engine)
        for key, value in state.get(master, {}).items()
        if torch.is_tensor(value) and value.numel() == master.numel() and value.ndim > 0
    }
    return sorted(keys)


def held(engine: Any, p: torch.nn.Parameter, keys: list[str]) -> Held | None:
    """This rank's shard of `p`, or None if it has no element of `p`."""
    optimizer, state = engine.optimizer, inner(engine).state
    if is_bare(engine):
        views = {MASTER: p.data.view(-1)} | {k: state[p][k].view(-1) for k in keys}
        return Held(0, views, replicated=True)
    if is_half_wrapper(optimizer):
        groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        master = next(m for halves, masters in groups for h, m in zip(halves, masters, strict=True) if h is p)
        return Held(0, {MASTER: master.data.view(-1)} | {k: state[master][k].view(-1) for k in keys}, replicated=True)
    if hasattr(p, "ds_id"):
        group, offset, _ = optimizer.grad_position[optimizer.get_param_id(p)]
        flat, width = optimizer.fp32_partitioned_groups_flat[group], weight_shard(p).numel()
        start = collectives.rank() * width
        count = max(0, min(width, shape_of(p).numel() - start))  # the last shards are padded
        views = {MASTER: flat.data} | {k: state[flat][k] for k in keys}
        return Held(start, {k: v.narrow(0, offset, count) for k, v in views.items()}) if count else None
    mapping = p._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    flat, place = flat_masters(engine)[mapping.param_group_index], mapping.hp_fragment_address
    views = {MASTER: flat.data} | {k: state[flat][k] for k in keys}
    shards = {k: v.narrow(0, place.start, place.numel) for k, v in views.items()}
    return Held(mapping.lp_fragment_address.start, shards)


def weight_shard(p: Any) -> torch.Tensor:
    """This rank's shard of a parameter's weights at stage 3."""
    return p.ds_tensor


def full_tensors(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields ('<parameter>:<key>', full flat float32 tensor on the CPU), in the same order on every rank. One rank
    keeps each tensor; the others get an empty one. A collective."""
    keys = state_keys(engine)
    for number, (name, p) in enumerate(trainable(engine).items()):
        mine = held(engine, p, keys)
        keeps = number % collectives.world() == collectives.rank()
        for key in [MASTER, *keys]:
            if mine is not None and mine.replicated:
                full = mine.views[key]
            else:
                full = torch.zeros(shape_of(p).numel(), dtype=torch.float32, device=engine.device)
                if mine is not None:
                    shard = mine.views[key]
                    full[mine.start : mine.start + shard.numel()] = shard.to(full.device)
                collectives.add_over_ranks(full)
            yield f"{name}:{key}", full.detach().to("cpu", torch.float32, copy=True) if keeps else torch.empty(0)


def numbers(engine: Any) -> dict[str, Any]:
    """Counters, learning rates, the loss scale, the scheduler's state, and the scalars of the optimizer's state."""
    state = inner(engine).state
    first: dict[str, Any] = next((state[m] for m in flat_masters(engine) if state.get(m)), {})
    scaler = loss_scaler(engine)
    scheduler = engine.lr_scheduler
    return {
        "counters": {name: int(getattr(engine, name)) for name in COUNTERS},
        "keys": state_keys(engine),
        "scalars": {
            k: float(v) for k, v in first.items() if not torch.is_tensor(v) or (v.numel() == 1 and v.ndim == 0)
        },
        "learning_rates": [float(group["lr"]) for group in engine.optimizer.param_groups],
        "scaler": {k: getattr(scaler, k) for k in SCALER if getattr(scaler, k, None) is not None},
        "scheduler": scheduler.state_dict() if scheduler is not None else None,
    }


def loss_scaler(engine: Any) -> Any:
    """The object that holds the loss scale, or None at stage 0 in fp32."""
    optimizer = engine.optimizer
    return getattr(optimizer, "loss_scale_config", None) or getattr(optimizer, "loss_scaler", None)


class FullTensors(Protocol):
    """The tensors of `full_tensors`, read again by name."""

    def size(self, name: str) -> int:
        """Number of elements. Raises KeyError for a name that is not there."""

    def part(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements start .. stop - 1, flat."""


def restore(engine: Any, saved: dict[str, Any], tensors: FullTensors, weights_only: bool = False) -> None:
    """Puts this rank's shards of `tensors` into the engine, and `saved`, which `numbers` returned. weights_only: do not
    change the optimizer's state.

    Raises KeyError for a parameter that `tensors` does not have, ValueError for one of another size.
    """
    keys = [] if weights_only else saved["keys"]
    if not weights_only:
        begin_state(engine, keys, saved["scalars"])
    for name, p in trainable(engine).items():
        size = shape_of(p).numel()
        if (found := tensors.size(f"{name}:{MASTER}")) != size:
            raise ValueError(f"{name}: {found} elements, expected {size}")
        mine = held(engine, p, keys)
        if mine is not None:
            for key, view in mine.views.items():
                view.copy_(tensors.part(f"{name}:{key}", mine.start, mine.start + view.numel()))
        put_weights(p, f"{name}:{MASTER}", tensors)
    if hasattr(engine.optimizer, "invalidate_secondary_tensor"):  # hierarchical ZeRO-3 gathers from copies of the
        engine.optimizer.invalidate_secondary_tensor()  # weights, which an earlier forward made
    if not weights_only:
        set_numbers(engine, saved)


def put_weights(p: torch.nn.Parameter, name: str, tensors: FullTensors) -> None:
    """Sets the weights that the model computes with, from the full flat master weights `name`."""
    count = shape_of(p).numel()
    if not hasattr(p, "ds_id"):
        p.data.view(-1).copy_(tensors.part(name, 0, count))
        return
    shard = weight_shard(p)
    start = min(collectives.rank() * shard.numel(), count)
    stop = min(start + shard.numel(), count)  # the last shards have padding
    shard.data.view(-1)[: stop - start].copy_(tensors.part(name, start, stop))
    if p.numel():  # a small parameter, which stage 3 also keeps in full on every rank
        p.data.view(-1).copy_(tensors.part(name, 0, count))


def begin_state(engine: Any, keys: list[str], scalars: dict[str, float]) -> None:
    """Creates the optimizer's state as it is after a first step, with zeros to be overwritten. Without `keys` and
    `scalars` the state is cleared."""
    state = inner(engine).state
    for master in flat_masters(engine):
        state.pop(master, None)
        if keys or scalars:
            zeros = {key: torch.zeros_like(master) for key in keys}
            state[master] = zeros | {key: torch.tensor(value) for key, value in scalars.items()}
    if hasattr(engine.optimizer, "_hp_optimizer_states_linked"):
        engine.optimizer._hp_optimizer_states_linked = False  # DeepSpeed's views are of the old state


def set_numbers(engine: Any, saved: dict[str, Any]) -> None:
    """Restores what `numbers` returned."""
    for name, value in saved["counters"].items():
        setattr(engine, name, value)
    for group, rate in zip(engine.optimizer.param_groups, saved["learning_rates"], strict=False):
        group["lr"] = rate
    scaler = loss_scaler(engine)
    for name, value in saved["scaler"].items():
        if scaler is not None and hasattr(scaler, name):  # the scaler of another stage may not have it
            setattr(scaler, name, value)
    if engine.lr_scheduler is not None and saved["scheduler"] is not None:
        engine.lr_scheduler.load_state_dict(saved["scheduler"])
