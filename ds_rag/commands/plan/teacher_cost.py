"""The cost of a frozen generator as teacher, whose scores are stored (`--teacher_cache`): each cell is read once.

What is stored of a cell is counted as models/score_store.py writes it: tests/unit/commands/plan/test_teacher_cost.py
compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_rag.commands.plan.duration import Rates, forward_flops
from ds_rag.commands.plan.setup import Setup

KEY_BYTES, LENGTH_BYTES, TOKEN_BYTES = 16, 4, 4


@dataclass(frozen=True)
class TeacherPlan:
    """The cost of scoring every row with each of its candidates once.

    cells: pairs of a row and a candidate. passages: distinct ones among them, at most, each of which is read once.
    cache_bytes: of the scores on disk.
    """

    rows: int
    cells: int
    passages: int
    flops: float
    gpu_hours: float
    cache_bytes: float


def plan_teacher(setup: Setup, rows: int, corpus: int, rates: Rates) -> TeacherPlan:
    """corpus: passages from which the candidates come; 0: each row has its own. Texts have their maximum lengths; an
    answer ends with one more token."""
    work = setup.work
    cells = rows * work.per_query(setup.world)
    passages = min(cells, corpus or rows * work.passages)
    flops = forward_flops(setup.generator, work.load_of(cells, passages))
    stored = cells * (KEY_BYTES + LENGTH_BYTES + TOKEN_BYTES * (work.answer + 1))
    hours = flops / rates.flops(setup.precision) / 3600
    return TeacherPlan(rows, cells, passages, flops, hours, float(stored))


def teacher_table(plan: TeacherPlan, world: int) -> tuple[str, list[str], list[list[str]]]:
    """Title, heads and rows. world: GPUs among which the passages are divided."""
    title = f"Scores of the frozen generator for {plan.rows:,} rows, computed once and stored"
    heads = [
        "cells",
        "passages",
        "PFLOP",
        "GPU-hours",
        f"hours, {world} GPU" + ("s" if world > 1 else ""),
        "cells/s",
        "cache GB",
    ]
    hours = plan.gpu_hours / world
    figures = [
        f"{plan.cells:,}",
        f"{plan.passages:,}",
        f"{plan.flops / 1e15:,.4g}",
        f"{plan.gpu_hours:,.3g}",
        f"{hours:,.3g}",
        f"{plan.cells / (3600 * hours):,.0f}",
        f"{plan.cache_bytes / 1e9:,.3g}",
    ]
    return title, heads, [figures]
