"""The training run of pair.py in plain PyTorch: one process, one autograd graph over both models, fp32.

Shape legend: B queries, N passages of the pool, D embedding, C cells, A target tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from pair import (
    DTYPES,
    LEARNING_RATES,
    NAMES,
    OPTIM,
    Case,
    Record,
    block_loss,
    blocks_of,
    lr_factor,
    make_models,
)
from torch import nn


def reference(case: Case, world: int, gather: str = "sum", clip: str = "joint", decay: str = "matrices") -> Record:
    """The same run in plain PyTorch, in one process and fp32.

    gather="local": each rank's passages get only the gradient of its own queries. clip="each": per model.
    decay="all": weight decay on every parameter. These must differ from the run.
    """
    models: dict[str, Any] = make_models(case.seed)
    for p in [p for model in models.values() for p in model.parameters()]:
        p.data = p.to(DTYPES[case.precision]).float()
    if case.frozen:
        models[case.frozen].requires_grad_(False)
    named: dict[str, Any] = {f"{n}.{k}": p for n, model in models.items() for k, p in model.named_parameters()}
    optimizers = {name: plain_adamw(models[name], LEARNING_RATES[name], decay) for name in NAMES}
    record = Record(start={k: p.detach().clone() for k, p in named.items()})
    for step in range(case.steps):
        for p in named.values():
            p.grad = None
        loss = step_loss(models, case, world, step, gather)
        loss.backward()
        alone = step < case.generator_alone
        trained = [name for name in NAMES if name != case.frozen and (name == "generator" or not alone)]
        if step == 0:
            record.gradients = {k: p.grad.clone() for k, p in named.items() if p.grad is not None}
        groups: dict[str, list[Any]] = {
            name: [p for p in models[name].parameters() if p.requires_grad] for name in trained
        }
        sets: list[list[Any]] = (
            [[p for group in groups.values() for p in group]] if clip == "joint" else list(groups.values())
        )
        norms = [torch.cat([p.grad.flatten() for p in s]).norm() for s in sets]
        for s, norm in zip(sets, norms, strict=True):
            for p in s if norm > case.max_grad_norm else ():
                p.grad.mul_(case.max_grad_norm / norm)
        skip = case.spoil is not None and case.spoil[0] == step
        for name in trained if not skip else ():
            for group in optimizers[name].param_groups:
                group["lr"] = LEARNING_RATES[name] * lr_factor(step)
            optimizers[name].step()
        record.losses.append(float(loss.detach()))
        record.norms.append(float(torch.stack(norms).norm()))
        record.skipped.append(skip)
        record.after.append({k: p.detach().clone() for k, p in named.items()})
    record.parameters = record.after[-1]
    return record


def plain_adamw(model: nn.Module, learning_rate: float, decay: str) -> torch.optim.Optimizer:
    groups = [
        {"params": [p], "weight_decay": OPTIM.weight_decay if p.ndim > 1 or decay == "all" else 0.0}
        for p in model.parameters()
    ]
    betas = (OPTIM.adam_beta1, OPTIM.adam_beta2)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=OPTIM.adam_epsilon, foreach=False)


def step_loss(models: dict[str, Any], case: Case, world: int, step: int, gather: str) -> torch.Tensor:
    """Mean over all ranks' queries of one optimizer step."""
    blocks = blocks_of(case, world, step)
    losses = []
    for m in range(case.accumulation):
        row = blocks[m * world : (m + 1) * world]
        embedded = [models["retriever"](b.queries, b.passages) for b in row]
        for r, block in enumerate(row):
            q_BD, p_ND, temperature = embedded[r]
            pool = [p if gather == "sum" or s == r else p.detach() for s, (_, p, _) in enumerate(embedded)]
            pool_ND = torch.cat(pool) if case.gather else p_ND
            logp_CA = models["generator"](block.cells)
            losses.append(block_loss(q_BD, pool_ND, temperature, logp_CA, block))
    return torch.stack(losses).mean()
