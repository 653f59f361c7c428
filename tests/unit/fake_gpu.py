"""A GPU that is not there: forwards on `device="cuda"` with torch's fake tensors, which have shape, type and device but
no values. Two tensors of one operation on different devices raise, as on a real GPU.

torch's CPU build refuses a few calls for a CUDA tensor before they reach the fake ones (`x.to("cuda")`, `x[...]`): it
asks for a guard of the device, which it does not have. `FakeGpu` sends these calls to the same operators by another
way. Values do not exist, so `x.tolist()`, `x.item()`, `float(x)` and autograd's engine (which asks for the device's
streams) stay impossible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

ATEN = torch.ops.aten


SHORT: dict[str, Any] = {
    "float": torch.float32,
    "half": torch.float16,
    "double": torch.float64,
    "long": torch.int64,
    "bool": torch.bool,
    "cuda": torch.device("cuda"),
}


class FakeGpu(TorchFunctionMode):
    """Calls that need a device guard, by operators that need none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("to", *SHORT) and isinstance(args[0], torch.Tensor):
            return move(name, args[0], args[1:], kwargs)
        if name in OTHERWISE:
            return OTHERWISE[name](*args)
        return func(*args, **kwargs)


def move(name: str, x: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
    """`x.to(...)` and its short forms."""
    device, dtype = x.device, x.dtype
    for value in [*args, *kwargs.values(), *([SHORT[name]] if name in SHORT else [])]:
        if isinstance(value, torch.Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, (str, torch.device)):
            device = torch.device(value)
    if (x.device.type, x.dtype) == (device.type, dtype):
        return x
    return ATEN._to_copy(x, dtype=dtype, device=device)


def split(x: torch.Tensor, index: Any) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """The view that integers, slices and None make, and the tensors that then index it, by dimension."""
    parts = list(index) if isinstance(index, tuple) else [index]
    taken = sum(1 for p in parts if p is not None and p is not Ellipsis)
    if Ellipsis in [p for p in parts if not isinstance(p, (torch.Tensor, list))]:
        at = next(n for n, p in enumerate(parts) if p is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (x.dim() - taken)
    dim, tensors = 0, []
    for part in parts:
        if part is None:
            x = x.unsqueeze(dim)
        elif isinstance(part, slice):
            if part != slice(None):
                x = ATEN.slice(x, dim, part.start, part.stop, part.step or 1)
        elif isinstance(part, int):
            x = ATEN.select(x, dim, part)
            continue
        else:
            tensors += [None] * (dim - len(tensors))
            where = part if isinstance(part, torch.Tensor) else torch.tensor(part, dtype=torch.int64, device=x.device)
            tensors.append(where)
        dim += 1
    return x, tensors


def get(x: torch.Tensor, index: Any) -> torch.Tensor:
    view, tensors = split(x, index)
    return ATEN.index(view, tensors) if tensors else view


def put(x: torch.Tensor, index: Any, value: Any) -> None:
    view, tensors = split(x, index)
    if not isinstance(value, torch.Tensor):
        value = torch.tensor(value, dtype=x.dtype, device=x.device)
    if tensors:
        ATEN.index_put_(view, tensors, value)
    else:
        view.copy_(value)


def contiguous(x: torch.Tensor) -> torch.Tensor:
    return x if x.is_contiguous() else ATEN.clone(x, memory_format=torch.contiguous_format)


OTHERWISE: dict[str, Callable[..., Any]] = {
    "__getitem__": get,
    "__setitem__": put,
    "__invert__": ATEN.bitwise_not,
    "contiguous": contiguous,
}


@contextmanager
def fake_gpu() -> Iterator[FakeTensorMode]:
    """Inside the block tensors are fake, and `device="cuda"` exists. Real ones on the CPU may come in."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, FakeGpu():
        yield mode


def move_module(module: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """`module.to("cuda")`, in place, its weights in `dtype`."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(p.detach().to("cuda", dtype), p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = b.to("cuda")


def devices(found: Any) -> set[str]:
    """Of all tensors in a structure of lists, tuples and dictionaries."""
    return {x.device.type for x in tree_flatten(found)[0] if isinstance(x, torch.Tensor)}
