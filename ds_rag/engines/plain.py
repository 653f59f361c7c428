"""An engine without DeepSpeed, for notebooks, custom loops and tests: one process, autograd, a torch optimizer."""

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
    """A model and its optimizer, to be used in `Engines` (common skip, joint clipping, one learning-rate factor).

    module: used in its present precision and on its present device. optimizer: over the trainable parameters. Default:
    AdamW at `learning_rate`, with the settings of `OptimConfig()` and no weight decay on vectors and scalars.
    `step` raises UserError in a run of several processes, because gradients are not averaged over them.

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
        # The counters that DeepSpeed's engines have too; a checkpoint saves them.
        self.global_steps = self.global_samples = self.skipped_steps = self.micro_steps = 0

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        """Does nothing: gradients are not reduced over ranks, so the last micro-batch is not special."""

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool = False) -> None:
        """Adds the gradients of `loss` to those that are there."""
        self.micro_steps += 1
        loss.backward()

    def step(self) -> None:
        if collectives.world() > 1:
            raise UserError(
                "PlainEngine trains in one process",
                found=f"{collectives.world()} processes",
                fix="make_engine, which makes a DeepSpeed engine",
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
    """A `PlainEngine` with AdamW around each model that has a trainable parameter; a frozen model stays a module.

    optim: learning rates, AdamW's settings and `max_grad_norm`.
    """
    optim = optim or OptimConfig()

    def wrap(module: nn.Module | None, rate: float | None) -> Any:
        if module is None or not any(p.requires_grad for p in module.parameters()):
            return module
        return PlainEngine(module, adamw(module, optim, optim.learning_rate if rate is None else rate))

    pair = wrap(retriever, optim.retriever_learning_rate), wrap(generator, optim.generator_learning_rate)
    return Engines(*pair, optim.max_grad_norm)
