"""Weights & Biases. Its environment variables say where figures are sent: WANDB_PROJECT, WANDB_MODE=offline, ..."""

from __future__ import annotations

import os
from typing import Any

from ds_rag.run.trackers import PROJECT, TrackedRun


class Wandb:
    def __init__(self, run: Any):
        self.run = run

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log({"step": step, **values})

    def finish(self) -> None:
        self.run.finish()


def start(run: TrackedRun) -> Wandb:
    """Starts or continues the run; a resumed run keeps its id. The step is logged as a metric, the x axis of all
    others: wandb's own step counter cannot go back to that of a checkpoint."""
    import wandb

    started = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.folder.name,
        id=run.known_id("wandb"),
        resume="allow",
        config=run.config,
        allow_val_change=True,  # a resumed run may change some settings
        # Not sent: what the libraries print, and the command line and git remote, which may hold credentials.
        settings=wandb.Settings(console="off", x_disable_meta=True),
    )
    run.keep_id("wandb", started.id)
    started.define_metric("*", step_metric="step")
    return Wandb(started)
