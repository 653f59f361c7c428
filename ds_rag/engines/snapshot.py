"""The retriever's weights at one step: a copy to encode with while training goes on."""

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
    """A copy of the retriever in evaluation mode, whole on this rank, that shares no tensor with it.

    On all ranks together: what ZeRO-3 holds in pieces is gathered, one parameter after the other. Memory: the weights
    once more, in the precision of the forward pass.
    """
    engines.settle("retriever")
    module: Any = engines.modules["retriever"]
    return copy_module(module, {}).eval()


def copy_module(module: Any, seen: dict[int, Any]) -> Any:
    """Parameters and buffers copied, tied ones once; all else (configuration, tokenizer) shared. No hook comes along:
    an engine's would lead the copy's forward back to the engine, as a deep copy would copy the engine."""
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
