"""What an engine must remember, whole and by parameter, whatever ZeRO stage and however many ranks hold it.

A stage cuts the fp32 master weights and the optimizer's moments into pieces of its own shape. Here every trainable
parameter is put together again (or, when it is loaded, cut again), so that a run may go on at another stage or on
other ranks, and so that a checkpoint is plain tensors (safetensors) and numbers, with nothing in it to execute.

    parameter p, flat:   |------- rank 0's piece -------|------- rank 1's piece -------|   (a stage may pad, or cut
                          start, views = held(...)                                          at another place)

Where a piece lies, by what DeepSpeed makes of a stage (the table in deepspeed_engine.py):

    plain torch optimizer       p itself and optimizer.state[p]; all ranks alike
    FP16_UnfusedOptimizer       fp32_groups and the inner optimizer's state of it; all ranks alike
    stages 1, 2; BF16_Optimizer p._hp_mapping
    stage 3                     fp32_partitioned_groups_flat, at grad_position
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ds_rag.engines.deepspeed_engine import is_bare, is_half_wrapper
from ds_rag.models.sharded import shape_of
from ds_rag.runtime import collectives
from ds_rag.runtime.output_places import follow_umask

MASTER = "master"  # key of the weights beside the optimizer's own keys
FILE_BYTES = 1 << 30  # a file is begun anew beyond this, so that a rank holds no more than about as much at once
COUNTERS = ("global_steps", "global_samples", "skipped_steps", "micro_steps")
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass
class Held:
    """This rank's piece of one parameter: flat views, from element `start` of the whole flat parameter on."""

    start: int
    views: dict[str, torch.Tensor]
    alike: bool = False  # every rank holds all of it


def trainable(engine: Any) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in engine.module.named_parameters() if p.requires_grad}


def inner(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer below DeepSpeed's."""
    optimizer = engine.optimizer
    return optimizer if is_bare(engine) else optimizer.optimizer


def flat_masters(engine: Any) -> list[torch.Tensor]:
    """The tensors that the inner optimizer steps: its keys to its state."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # stage 3 lends them to the optimizer at each step
        return list(optimizer.fp32_partitioned_groups_flat)
    return [p for group in inner(engine).param_groups for p in group["params"]]


def state_keys(engine: Any) -> list[str]:
    """Names of the optimizer's tensors that have an element for each of the parameter's (exp_avg, ...). After its first
    step; before it there are none, on any rank."""
    state = inner(engine).state
    keys = {
        key
        for master in flat_masters(engine)
        for key, value in state.get(master, {}).items()
        if torch.is_tensor(value) and value.numel() == master.numel() and value.ndim > 0
    }
    return sorted(keys)


def held(engine: Any, p: torch.nn.Parameter, keys: list[str]) -> Held | None:
    """This rank's piece of `p`, or None where it has none."""
    optimizer, state = engine.optimizer, inner(engine).state
    if is_bare(engine):
        views = {MASTER: p.data.view(-1)} | {k: state[p][k].view(-1) for k in keys}
        return Held(0, views, alike=True)
    if is_half_wrapper(optimizer):
        groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        master = next(m for halves, masters in groups for h, m in zip(halves, masters, strict=True) if h is p)
        return Held(0, {MASTER: master.data.view(-1)} | {k: state[master][k].view(-1) for k in keys}, alike=True)
    if hasattr(p, "ds_id"):
        group, offset, _ = optimizer.grad_position[optimizer.get_param_id(p)]
        flat, width = optimizer.fp32_partitioned_groups_flat[group], piece_of(p).numel()
        start = collectives.rank() * width
        count = max(0, min(width, shape_of(p).numel() - start))  # the last pieces are padded
        views = {MASTER: flat.data} | {k: state[flat][k] for k in keys}
        return Held(start, {k: v.narrow(0, offset, count) for k, v in views.items()}) if count else None
    mapping = p._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    flat, place = flat_masters(engine)[mapping.param_group_index], mapping.hp_fragment_address
    views = {MASTER: flat.data} | {k: state[flat][k] for k in keys}
    pieces = {k: v.narrow(0, place.start, place.numel) for k, v in views.items()}
    return Held(mapping.lp_fragment_address.start, pieces)


def piece_of(p: Any) -> torch.Tensor:
    """What this rank holds of a parameter at stage 3."""
    return p.ds_tensor


def full_tensors(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """('<parameter>:<key>', flat whole float32 tensor on the CPU), every one on every rank in the same order; on the
    ranks that do not keep it the tensor is empty. A collective."""
    keys = state_keys(engine)
    for number, (name, p) in enumerate(trainable(engine).items()):
        mine = held(engine, p, keys)
        keeps = number % collectives.world() == collectives.rank()
        for key in [MASTER, *keys]:
            if mine is not None and mine.alike:
                whole = mine.views[key]
            else:
                whole = torch.zeros(shape_of(p).numel(), dtype=torch.float32, device=engine.device)
                if mine is not None:
                    piece = mine.views[key]
                    whole[mine.start : mine.start + piece.numel()] = piece.to(whole.device)
                collectives.add_over_ranks(whole)
            yield f"{name}:{key}", whole.detach().to("cpu", torch.float32, copy=True) if keeps else torch.empty(0)


def save_engine(engine: Any, folder: Path) -> str | None:
    """Writes `folder`: each rank its share of the parameters, in files of about FILE_BYTES, and rank 0 the numbers.

    Returns what went wrong on this rank, if anything: it goes on to help the others with theirs.
    """
    from safetensors.torch import save_file

    waiting: dict[str, torch.Tensor] = {}
    count, failure = 0, None

    def write() -> None:
        nonlocal waiting, count, failure
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if waiting:
                file = folder / f"rank{collectives.rank():04d}-{count:04d}.safetensors"
                save_file(waiting, file)
                follow_umask([file])
        except Exception as error:  # a full disk is safetensors' own exception
            failure = failure or f"{type(error).__name__}: {error}"
        waiting, count = {}, count + 1

    for name, tensor in full_tensors(engine):
        if tensor.numel():
            waiting[name] = tensor
        if sum(t.nbytes for t in waiting.values()) >= FILE_BYTES:
            write()
    write()
    if collectives.rank() == 0 and failure is None:
        try:
            (folder / "numbers.json").write_text(json.dumps(numbers(engine), indent=1), encoding="utf-8")
        except OSError as error:
            failure = str(error)
    return failure


def numbers(engine: Any) -> dict[str, Any]:
    """Counters, learning rates, the loss scale, a schedule's place, and the optimizer's own scalars."""
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
    """What holds the loss scale, or None at stage 0 in fp32."""
    optimizer = engine.optimizer
    return getattr(optimizer, "loss_scale_config", None) or getattr(optimizer, "loss_scaler", None)


def load_engine(engine: Any, folder: Path, weights_only: bool = False) -> None:
    """Cuts what `folder` holds to this engine's pieces. weights_only: the optimizer stays as it is.

    Raises KeyError for a parameter that the folder does not hold, ValueError for one of another size.
    """
    from safetensors import safe_open

    with_numbers = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
    keys = [] if weights_only else with_numbers["keys"]
    if not weights_only:
        begin_state(engine, keys, with_numbers["scalars"])
    files = [safe_open(file, framework="pt") for file in sorted(folder.glob("*.safetensors"))]
    where = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a dict)
    for name, p in trainable(engine).items():
        size = shape_of(p).numel()
        found = where[f"{name}:{MASTER}"].get_slice(f"{name}:{MASTER}")
        if found.get_shape() != [size]:
            raise ValueError(f"{name}: {found.get_shape()} elements, expected {size}")
        mine = held(engine, p, keys)
        if mine is not None:
            for key, view in mine.views.items():
                piece = where[f"{name}:{key}"].get_slice(f"{name}:{key}")
                view.copy_(piece[mine.start : mine.start + view.numel()])
        put_weights(p, found)
    if hasattr(engine.optimizer, "invalidate_secondary_tensor"):  # hierarchical ZeRO-3 gathers from copies that an
        engine.optimizer.invalidate_secondary_tensor()  # earlier forward made of the weights before
    if not weights_only:
        set_numbers(engine, with_numbers)


def put_weights(p: torch.nn.Parameter, whole: Any) -> None:
    """The weights that the model computes with, from the whole flat master `whole` (a slice of a file)."""
    if not hasattr(p, "ds_id"):
        p.data.view(-1).copy_(whole[:])
        return
    piece = piece_of(p)
    start = collectives.rank() * piece.numel()
    count = max(0, min(piece.numel(), shape_of(p).numel() - start))
    piece.data.view(-1)[:count].copy_(whole[start : start + count])
    if p.numel():  # one that stays whole on every rank
        p.data.view(-1).copy_(whole[:])


def begin_state(engine: Any, keys: list[str], scalars: dict[str, float]) -> None:
    """The optimizer's state as after its first step, to be filled; empty where `keys` and `scalars` are."""
    state = inner(engine).state
    for master in flat_masters(engine):
        state.pop(master, None)
        if keys or scalars:
            own = {key: torch.zeros_like(master) for key in keys}
            state[master] = own | {key: torch.tensor(value) for key, value in scalars.items()}
    if hasattr(engine.optimizer, "_hp_optimizer_states_linked"):
        engine.optimizer._hp_optimizer_states_linked = False  # DeepSpeed's own views are of the state before


def set_numbers(engine: Any, saved: dict[str, Any]) -> None:
    for name, value in saved["counters"].items():
        setattr(engine, name, value)
    for group, rate in zip(engine.optimizer.param_groups, saved["learning_rates"], strict=False):
        group["lr"] = rate
    scaler = loss_scaler(engine)
    for name, value in saved["scaler"].items():
        if scaler is not None and hasattr(scaler, name):  # another stage's may lack one
            setattr(scaler, name, value)
    if engine.lr_scheduler is not None and saved["scheduler"] is not None:
        engine.lr_scheduler.load_state_dict(saved["scheduler"])
