"""Writing a Hugging Face model in float32, whatever precision it was trained in."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch


def save_model(model: Any, state: dict[str, torch.Tensor], prefix: str, folder: Path) -> None:
    """`model.save_pretrained` with the entries of `state` below `prefix`, floating ones in float32.

    The written configuration says float32 as well: from_pretrained opens in the precision that it names.
    """
    float32: dict[Any, torch.Tensor] = {}  # tied weights must stay one tensor to be saved as one

    def widen(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return float32.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), tensor.float())

    weights = {k.removeprefix(prefix): widen(v) for k, v in state.items() if k.startswith(prefix)}
    model.save_pretrained(folder, state_dict=weights)
    config = copy.deepcopy(model.config)
    config.dtype = torch.float32
    config.save_pretrained(folder)
