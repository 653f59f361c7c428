"""Predictions of `ds-rag plan` for more ranks and larger corpora than a test machine has: the tables of
docs/scaling.md.

They are for bge-large and an 8B model on H100s, as `ds-rag plan` knows them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ds_rag.commands.plan.communication import plan_traffic, pool_traffic
from ds_rag.commands.plan.duration import Rates, step_time
from ds_rag.commands.plan.hardware import GPUS, HOST_MEMORY
from ds_rag.commands.plan.index_cost import plan_index
from ds_rag.commands.plan.memory import plan_memory
from ds_rag.commands.plan.setup import Setup
from ds_rag.commands.plan.shapes import read_shape
from ds_rag.commands.plan.workload import Workload

RANKS = (1, 2, 4, 8, 64, 512)
CORPORA = (10**5, 10**6, 10**7, 21_000_000, 10**8, 10**9)
H100 = Rates(GPUS["h100"])


def pair(work: Workload, **changes: Any) -> Setup:
    models = read_shape("bge-large", "--retriever", False), read_shape("llama-8b", "--generator", True)
    return replace(Setup(*models, work, checkpointing=True), **changes)


def pools(batch: int = 16) -> list[dict[str, Any]]:
    """The step of one rank with a pool of all ranks: each passage is read on one rank (`tokens`), or on every rank that
    needs it (`tokens_not_stationary`)."""
    rows = []
    for candidates in (8, 64, None):
        for world in RANKS:
            work = Workload(batch, candidates, world_pool=True)
            if candidates is not None and candidates > work.pool(world):
                continue
            setup = pair(work, world=world)
            cells, load = work.cells(world), work.generator(world)
            elsewhere = min(work.pool(world), cells) * work.prefix_tokens + cells * work.segment_tokens
            rows.append(
                {
                    "candidates": "all" if candidates is None else candidates,
                    "ranks": world,
                    "pool": work.pool(world),
                    "cells": cells,
                    "tokens": load.tokens,
                    "tokens_not_stationary": elsewhere,
                    "pool_mb": pool_traffic(setup).pool / 1e6,
                    "sent_gb": plan_traffic(setup).total / 1e9,
                }
            )
    return rows


def stages() -> list[dict[str, Any]]:
    """GB per GPU and seconds per step, by ZeRO stage and number of ranks."""
    rows = []
    for stage in ("1", "2", "3", "3+offload"):
        for world in (4, 8, 16, 64, 512):
            setup = pair(Workload(), world=world, stages=(stage, stage))
            step = step_time(setup, H100)
            figures = {"gb": plan_memory(setup).peak / 1e9, "step_s": step.total, "sending_s": step.communication}
            rows.append({"stage": stage, "ranks": world} | figures)
    return rows


def corpora() -> list[dict[str, Any]]:
    """Index sizes in GB by type, and GPU-hours to encode all passages once."""
    rows = []
    for passages in CORPORA:
        plan = plan_index(read_shape("bge-large", "--retriever", False), passages, 200, H100, "bf16", HOST_MEMORY * 5e8)
        sizes = {name: size / 1e9 for name, size in plan.sizes.items()}
        rows.append(
            {"passages": passages, **sizes, "gpu_hours": plan.encode_gpu_hours, "recommended": plan.recommended}
        )
    return rows


def everything() -> dict[str, Any]:
    return {"pools": pools(), "stages": stages(), "corpora": corpora()}
