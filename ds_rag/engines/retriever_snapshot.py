"""A copy of the retriever at one step, to encode passages with while training continues."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from ds_rag.engines.engine_pair import Engines
from ds_rag.models.retriever import Retriever
from ds_rag.models.sharded import gathered


def snapshot(engines: Engines) -> Retriever:
    """A copy of the retriever in evaluation mode, with full parameters on this rank, that shares no tensor with it.

    A collective: parameters that ZeRO-3 has sharded are gathered one after the other. It takes the memory of the
    weights once more, in the precision of the forward pass.
    """
    engines.settle("retriever")
    module: Any = engines.modules["retriever"]
    return copy_module(module, {}).eval()


def copy_module(module: Any, seen: dict[int, Any]) -> Any:
    """A copy of a module whose parameters and buffers are copies (tied ones once); all else, such as configuration and
    tokenizer, is shared. seen: copies made so far, by id.

    Hooks are left out, because those of an engine would call that engine in the copy's forward. For the same reason
    `copy.deepcopy` does not work: it would copy the engine too.
    """
    if id(module) in seen:
        return seen[id(module)]
    twin = seen[id(module)] = copy.copy(module)
    for name, value in vars(module).items():
        if "_hooks" in name and isinstance(value, dict):
            setattr(twin, name, OrderedDict())

    def copied(tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None:
            return None
        if id(tensor) not in seen:
            with gathered([tensor]):
                twin_tensor = tensor.detach().clone()
            seen[id(tensor)] = (
                nn.Parameter(twin_tensor, requires_grad=False) if isinstance(tensor, nn.Parameter) else twin_tensor
            )
        return seen[id(tensor)]

    twin._parameters = {name: copied(p) for name, p in module._parameters.items()}
    twin._buffers = {name: copied(b) for name, b in module._buffers.items()}
    twin._modules = {name: m and copy_module(m, seen) for name, m in module._modules.items()}
    return twin
