"""Watches the training loop for steps that are not finite and for collapse. One object is given every step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_rag.config import RunConfig
from ds_rag.engines.engine_pair import StepResult
from ds_rag.evaluation.collapse import CollapseWatch, Retrieved
from ds_rag.run import checkpoint
from ds_rag.run.metrics_file import Metrics
from ds_rag.runtime.console import Console
from ds_rag.step.joint_step import StepOutput
from ds_rag.step.non_finite import BadSteps


class Watchers:
    """All ranks must call every method. Warnings are printed, and written to metrics.jsonl as lines of kind
    'warning'."""

    def __init__(self, config: RunConfig, folder: Path, console: Console, metrics: Metrics):
        self.folder, self.console, self.metrics, self.step = folder, console, metrics, 0
        self.bad = BadSteps(config.optim.max_bad_steps, lambda text: self.warn("bad_steps", text))
        self.collapse = CollapseWatch(self.warn, config.run.detect_collapse)

    @property
    def memory(self) -> dict[str, Any]:
        """What a checkpoint must contain, so that a run that is often stopped gets the same warnings."""
        return {"bad_in_row": self.bad.in_row, **self.collapse.memory}

    def remember(self, memory: dict[str, Any]) -> None:
        self.bad.in_row = memory.get("bad_in_row", 0)
        self.collapse.remember(memory)

    @property
    def healthy(self) -> bool:
        """False while the last steps were bad: saving now might delete the last good checkpoint."""
        return not self.bad.in_row

    def count(self, step: int, skipped: int, result: StepResult, outputs: Sequence[StepOutput]) -> dict[str, Any]:
        """Counts a step and returns what it adds to the step's line. skipped: skipped steps of the run so far, this one
        included."""
        self.step = step
        return {
            "skipped_total": skipped,
            "skipped_in_row": self.bad.count(step, result, [output.sign for output in outputs]),
        }

    def after_step(self, values: dict[str, Any]) -> None:
        """To be called once the step's line is written. Raises RunError after too many bad steps in a row."""
        if self.bad.enough:  # only then list the folder's checkpoints
            found = checkpoint.checkpoints(self.folder)
            self.bad.check(str(found[-1]) if found else None)
        self.collapse.after_step(self.step, values)

    def after_evaluation(self, step: int, retrieved: Retrieved | None) -> None:
        self.collapse.after_evaluation(step, retrieved)

    def warn(self, kind: str, text: str) -> None:
        for line in text.split("\n"):
            self.console.say(line, style="yellow")
        self.metrics.write("warning", self.step, {"about": kind, "text": text})
