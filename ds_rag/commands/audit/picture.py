"""The picture of an audit: who puts a right passage first, and what gains tell rows apart."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

from ds_rag.commands.compare.picture import BLUE, GREY, check_picture, lengths
from ds_rag.evaluation.audit import AMONG, LEFT_OUT, best_gains
from ds_rag.evaluation.audit_scores import AuditScores
from ds_rag.runtime.atomic_files import replacing

__all__ = ["check_picture", "write_picture"]
BINS = 24


def write_picture(result: dict[str, Any], scores: AuditScores, path: Path) -> None:
    """Left the pickers with their intervals; right how the best gain is spread over rows with a right passage among
    their candidates, and over the same rows without it. result: as the JSON has it."""
    from matplotlib.figure import Figure  # slow to import

    first = result["gold_first"]
    drawing = Figure(figsize=(10, 1.4 + 0.34 * max(len(first), 5)), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for row, of in enumerate(first.values()):
        mean, ends = of["gold among them"]["mean"], of["gold among them"]["interval"]
        if mean is not None:
            left.errorbar(mean, row, xerr=lengths(mean, ends), fmt="o", color=BLUE, capsize=3)
    left.set_yticks(range(len(first)), list(first), fontsize=8)
    left.set_ylim(len(first) - 0.5, -0.5)
    left.set_xlim(0, 1)
    left.set_title(f"right passage first of {scores.K}, 95 % interval", fontsize=10)
    gains = best_gains(scores)
    kept = {name: [u for u in gains[name].tolist() if isfinite(u)] for name in (AMONG, LEFT_OUT)}
    every = [u for values in kept.values() for u in values]
    for (name, values), colour in zip(kept.items(), (BLUE, GREY), strict=True):
        if every:
            right.hist(values, BINS, (min(every), max(every)), color=colour, alpha=0.55, label=name)
    if result["suggested"]["gate_gain"] is not None:
        right.axvline(result["suggested"]["gate_gain"], color="black", linewidth=0.9, linestyle="--", label="threshold")
    if every:
        right.legend(fontsize=8, frameon=False)
    right.set_title("best gain over no passage, nats a token; rows", fontsize=10)
    for axes in (left, right):
        axes.grid(color=GREY, alpha=0.18, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, binary=True) as stream:
        drawing.savefig(stream, format="png", dpi=160, facecolor="white")
