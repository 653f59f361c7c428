"""An engine without DeepSpeed: one process, plain autograd, a torch optimizer. For notebooks, own loops and tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ds_rag.config import OptimConfig
from ds_rag.engines.engine_pair import Engines
from ds_rag.engines.optimizer import adamw
from ds_rag.runtime import collectives
from ds_rag.runtime.errors import UserError


class PlainEngine:
    """A model and its optimizer, as `Engines` steps them: common skip, joint clipping, one learning-rate factor.

    module: called as it is, in its own precision and on its own device. optimizer: over its trainable parameters;
    default: AdamW at `learning_rate`, with the settings of `OptimConfig()` and no weight decay on vectors.
    Raises UserError at a step of more than one process, whose gradients it would not average.

    Example:
        >>> engine = ds_rag.PlainEngine(generator, learning_rate=1e-4)
        >>> before = [p.clone() for p in generator.parameters()]
        >>> cells = ds_rag.cells(prompt, ["who ?"], [["ann was here"]], ["ann"])
        >>> engine.backward(-ds_rag.score_cells(generator, cells).sum())
        >>> engine.step()
        >>> any(bool((p != old).any()) for p, old in zip(generator.parameters(), before, strict=True))
        True
    """

    lr_scheduler = None

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer | None = None, learning_rate: float = 2e-5):
        self.module = module
        self.optimizer = optimizer or adamw(module, OptimConfig(), learning_rate)
        # What DeepSpeed's engines count, too: a checkpoint keeps it.
        self.global_steps = self.global_samples = self.skipped_steps = self.micro_steps = 0

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        """Nothing is reduced over ranks here, so the last micro-batch is as the others."""

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool = False) -> None:
        """Adds to the gradients."""
        self.micro_steps += 1
        loss.backward()

    def step(self) -> None:
        if collectives.world() > 1:
            raise UserError(
                "PlainEngine trains in one process",
                found=f"{collectives.world()} processes",
                fix="make_engine, which makes one of DeepSpeed",
            )
        self.optimizer.step()
        self.zero_grad()
        self.global_steps += 1

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def was_step_applied(self) -> bool:
        return True


def plain_engines(
    retriever: nn.Module, generator: nn.Module | None = None, optim: OptimConfig | None = None
) -> Engines:
    """A `PlainEngine` with AdamW for each model that has a trainable parameter; a frozen one stays a module. optim:
    learning rates, AdamW's settings and `max_grad_norm`, as training has them."""
    optim = optim or OptimConfig()

    def of(module: nn.Module | None, own_rate: float | None) -> Any:
        if module is None or not any(p.requires_grad for p in module.parameters()):
            return module
        return PlainEngine(module, adamw(module, optim, optim.learning_rate if own_rate is None else own_rate))

    pair = of(retriever, optim.retriever_learning_rate), of(generator, optim.generator_learning_rate)
    return Engines(*pair, optim.max_grad_norm)
