"""Trackio: figures on this machine, for `trackio show`. Its environment variables are TRACKIO_DIR, TRACKIO_SPACE_ID."""

from __future__ import annotations

import os
import uuid
from types import ModuleType

from ds_rag.run.trackers import PROJECT, TrackedRun


class Trackio:
    def __init__(self, trackio: ModuleType):
        self.trackio = trackio

    def log(self, step: int, values: dict[str, float]) -> None:
        self.trackio.log(dict(values), step=step)

    def finish(self) -> None:
        self.trackio.finish()


def start(run: TrackedRun) -> Trackio:
    """Starts or continues the run. Its name is unique, and a resumed run keeps it."""
    import trackio

    name = run.known_id("trackio") or f"{run.folder.name}-{uuid.uuid4().hex[:6]}"
    trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=name, resume="allow", config=run.config, embed=False
    )
    run.keep_id("trackio", name)
    return Trackio(trackio)
