"""Saves a run's checkpoints, one a step at most, with the facts and candidates of the run, by `checkpoint.py`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ds_rag.run import checkpoint
from ds_rag.run.assemble import Parts
from ds_rag.run.checkpoint import TrainState
from ds_rag.runtime.errors import not_written


class CheckpointSaver:
    """Saves this run's checkpoints. saved: the step of the last one; seconds: what saving it took."""

    def __init__(self, folder: Path, limit: int, parts: Parts, facts: dict[str, Any], saved: int = -1):
        """limit: how many checkpoints are kept; facts: what their manifests say about the run."""
        self.folder, self.limit, self.parts = folder, limit, parts
        self.facts, self.saved = facts, saved
        self.seconds = 0.0  # spent on the last one

    def save(self, state: TrainState) -> bool:
        """Saves a checkpoint of this step; returns False if there already is one. Raises RunError where it could not be
        written; the one before is then unchanged."""
        if state.step == self.saved:
            return False
        began = time.monotonic()
        arrays = self.parts.candidates.arrays if self.parts.candidates else {}  # a resumed run needs the same ones
        try:
            checkpoint.save(self.folder, self.parts.engines, state, self.limit, self.facts, arrays)
        except OSError as error:
            fix = "free some, then --resume auto: the checkpoint before it is complete"
            raise not_written(f"the checkpoint of step {state.step}", error, self.folder, fix) from None
        self.saved, self.seconds = state.step, time.monotonic() - began
        return True
