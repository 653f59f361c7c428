"""The default optimizer of a model, used if the DeepSpeed JSON has none: AdamW without weight decay on vectors and
scalars, and with a learning rate of its own for BM25's weight: Adam moves a parameter by about its rate, so that at an
encoder's rate a weight would stay where it begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ds_rag.config import OptimConfig
from ds_rag.models.sharded import shape_of


def param_groups(module: nn.Module, lexical_rate: float | None = None) -> list[dict[str, Any]]:
    """The trainable parameters in groups: matrices, without weight decay biases, norms and scalars, and a retriever's
    weight of BM25, at `lexical_rate` where that is given."""
    word_weight = getattr(module, "log_lexical_weight", None)
    params = [p for p in module.parameters() if p.requires_grad]
    others = [p for p in params if p is not word_weight]
    rate = {} if lexical_rate is None else {"lr": lexical_rate}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if len(shape_of(p)) >= 2]},
        {"params": [p for p in others if len(shape_of(p)) < 2], "weight_decay": 0.0},
        {"params": [p for p in params if p is word_weight], "weight_decay": 0.0} | rate,
    ]
    return [group for group in groups if group["params"]]


def adamw(module: nn.Module, optim: OptimConfig, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW over `param_groups`."""
    return torch.optim.AdamW(
        param_groups(module, optim.lexical_prior_learning_rate),
        lr=learning_rate,
        betas=(optim.adam_beta1, optim.adam_beta2),
        eps=optim.adam_epsilon,
        weight_decay=optim.weight_decay,
        fused=True,  # on a CPU it takes a tenth of the default's time
    )
