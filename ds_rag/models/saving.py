"""Writing a Hugging Face model in float32, whatever precision it was trained in."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from ds_rag.runtime.output_places import follow_umask


def save_model(model: Any, state: dict[str, torch.Tensor], prefix: str, folder: Path) -> None:
    """`model.save_pretrained` with the entries of `state` under `prefix`, floating-point ones in float32.

    The configuration says float32 as well: from_pretrained uses the precision that it names. For a model with adapters
    only the adapters are written, with the folder of their base model.
    """
    weights = {
        name.removeprefix(prefix): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    model.save_pretrained(folder, state_dict=weights)
    follow_umask(folder.glob("*.safetensors"))
    if getattr(model, "_hf_peft_config_loaded", False):
        return  # adapters only: with a config.json beside them transformers would look for full weights there
    config = copy.deepcopy(model.config)
    config.dtype = torch.float32
    config.save_pretrained(folder)
