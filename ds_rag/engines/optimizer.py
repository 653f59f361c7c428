"""The default optimizer of a model, used if the DeepSpeed JSON has none: AdamW without weight decay on vectors and
scalars."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ds_rag.config import OptimConfig
from ds_rag.models.sharded import shape_of


def param_groups(module: nn.Module) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: matrices, and without weight decay biases, norms and scalars."""
    params = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in params if len(shape_of(p)) >= 2]},
        {"params": [p for p in params if len(shape_of(p)) < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(module: nn.Module, optim: OptimConfig, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW over `param_groups`."""
    return torch.optim.AdamW(
        param_groups(module),
        lr=learning_rate,
        betas=(optim.adam_beta1, optim.adam_beta2),
        eps=optim.adam_epsilon,
        weight_decay=optim.weight_decay,
        fused=True,  # on a CPU it takes a tenth of the default's time
    )
