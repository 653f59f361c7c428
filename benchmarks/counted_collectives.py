"""Counts the bytes that this rank sends, by wrapping PyTorch's collectives. To be imported before DeepSpeed, which
keeps references to some of them.

A collective counts as the ring algorithm that NCCL and gloo use for large tensors: each of W ranks sends (W - 1) / W of
the full tensor for a gather, a reduce-scatter or a broadcast, and twice that for an all-reduce.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as torch_dist
from torch.distributed import distributed_c10d as c10d

FACTOR = {
    "all_reduce": 2.0,
    "all_gather": 1.0,
    "all_gather_into_tensor": 1.0,
    "reduce_scatter": 1.0,
    "reduce_scatter_tensor": 1.0,
    "broadcast": 1.0,
    "reduce": 1.0,
    "all_to_all_single": 1.0,
}
sent: dict[str, float] = {}  # bytes by collective, while `counting`
_counts, _inside = False, False


def start_counting() -> None:
    global _counts
    sent.clear()
    _counts = True


def stop_counting() -> dict[str, float]:
    global _counts
    _counts = False
    return dict(sent)


def full_bytes(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """Bytes of the full tensor of a collective: the gathered one, or the one to be scattered."""
    values = [*args, *kwargs.values()]
    tensors: list[torch.Tensor] = []
    for value in values:
        tensors += [value] if isinstance(value, torch.Tensor) else []
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
            joined = sum(x.numel() * x.element_size() for x in value)
            return joined
    return max(x.numel() * x.element_size() for x in tensors)


def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        global _inside
        if not _counts or _inside:
            return function(*args, **kwargs)
        world = torch_dist.get_world_size(kwargs.get("group"))
        size = FACTOR[name] * (world - 1) / world * full_bytes(name, args, kwargs)
        sent[name] = sent.get(name, 0.0) + size
        _inside = True
        try:
            return function(*args, **kwargs)
        finally:
            _inside = False

    return call


for _name in FACTOR:
    _wrapped = counted(_name, getattr(torch_dist, _name))
    setattr(torch_dist, _name, _wrapped)
    setattr(c10d, _name, _wrapped)
