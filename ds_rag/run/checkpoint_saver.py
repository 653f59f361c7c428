"""When a run's checkpoint is written, and what of the run goes into it; `checkpoint.py` writes the files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ds_rag.run import checkpoint
from ds_rag.run.assemble import Parts
from ds_rag.run.checkpoint import TrainState
from ds_rag.runtime.errors import not_written


class CheckpointSaver:
    """Saves this run's checkpoints. `saved`: the last step there is one of."""

    def __init__(self, folder: Path, limit: int, parts: Parts, facts: dict[str, Any], saved: int = -1):
        """limit: how many are kept; facts: for their manifests."""
        self.folder, self.limit, self.parts = folder, limit, parts
        self.facts, self.saved = facts, saved
        self.seconds = 0.0  # spent on the last one

    def save(self, state: TrainState) -> bool:
        """A checkpoint of this step; False where there is one already. Raises RunError where it could not be written:
        the one before still stands."""
        if state.step == self.saved:
            return False
        began = time.monotonic()
        arrays = self.parts.candidates.arrays if self.parts.candidates else {}  # so that a resumed run reads the same
        try:
            checkpoint.save(self.folder, self.parts.engines, state, self.limit, self.facts, arrays)
        except OSError as error:
            fix = "free some, then --resume auto: the checkpoint before it is complete"
            raise not_written(f"the checkpoint of step {state.step}", error, self.folder, fix) from None
        self.saved, self.seconds = state.step, time.monotonic() - began
        return True
