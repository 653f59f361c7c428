"""The figures of a step: its line in metrics.jsonl, and the text beside the progress bar."""

from __future__ import annotations

import math
import time

from ds_rag.engines.engine_pair import StepResult
from ds_rag.run.assemble import Parts
from ds_rag.runtime import collectives
from ds_rag.runtime.peak_memory import peak_memory_gb
from ds_rag.step.joint_step import StepOutput

MEANS = (
    "embedding_spread",
    "kept_cells",
    "dropped_mass",
    "cached_cells",
    "lexical_weight",
)  # metrics averaged over micro-batches and ranks


def step_values(
    outputs: list[StepOutput], totals: dict[str, float], result: StepResult, began: float, parts: Parts
) -> dict[str, float]:
    """A step's line in metrics.jsonl: the sums over micro-batches and ranks, and means of those that are means.

    totals: tokens of this rank, queries of all; began: time.monotonic() at the start of the step.
    """
    local = {"loss": sum(o.loss for o in outputs), "tokens": totals["tokens"]}
    for output in outputs:
        for name, value in output.sums.items():
            local[name] = local.get(name, 0.0) + value
    values = collectives.all_sum(local, parts.device)
    seconds = time.monotonic() - began
    count = len(outputs) * collectives.world()
    for name in values:
        if name.endswith("entropy"):
            values[name] /= max(1.0, totals["queries"])
        elif name.startswith("grad_share/") or name in MEANS:
            values[name] /= count
    tokens = values.pop("tokens")
    return values | {
        "grad_norm": result.grad_norm,
        "skipped": int(result.skipped),
        "tokens_per_s": tokens / seconds,
        "queries_per_s": totals["queries"] / seconds,
        "memory_gb": peak_memory_gb(),
        **{f"lr/{name}": engine.optimizer.param_groups[0]["lr"] for name, engine in parts.engines.learning.items()},
    }


class ProgressText:
    """The text beside the progress bar."""

    def __init__(self, metrics: dict[str, float]):
        self.metrics = metrics
        self.loss: float | None = None

    def line(self, loss: float) -> str:
        if math.isfinite(loss):  # that of a skipped step may not be
            self.loss = loss if self.loss is None else 0.9 * self.loss + 0.1 * loss
        shown = {"recall@1": "recall@1", "exact_match": "answers"}
        parts = [f"{text} {self.metrics[name]:.2f}" for name, text in shown.items() if name in self.metrics]
        return "  ".join([f"loss {loss if self.loss is None else self.loss:.3f}", *parts])
