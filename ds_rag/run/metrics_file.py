"""`metrics.jsonl`: the figures of a run, a JSON object a line; trackers are sent the same figures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ds_rag.config import RunConfig
from ds_rag.run.trackers import TrackedRun, Tracking, start_tracking
from ds_rag.runtime import collectives
from ds_rag.runtime.atomic_files import replacing

INDEX_STAGE = ("refresh", "candidates", "eval")  # kinds of lines


class Metrics:
    """The file, and the trackers beside it. Rank 0 has both; elsewhere nothing is written."""

    def __init__(
        self,
        folder: Path | None,
        resumed_at: int | None = None,
        refreshed: int | None = None,
        say: Callable[[str], None] = lambda text: None,
        tracking: Tracking | None = None,
    ):
        """folder: the run's; None: nothing is written. resumed_at: lines of later steps are taken back, for they come
        again; None: a new run. refreshed: the last step whose index stage was done when that checkpoint was saved.
        say: told where lines are damaged."""
        self.file = open_lines(folder, resumed_at, refreshed, say) if folder else None
        self.tracking = tracking or Tracking()

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """A line, at once. Raises OSError with the file's name."""
        if not self.file:
            return
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        try:
            self.file.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
            self.file.flush()
        except OSError as error:  # says nothing of its file by itself
            raise OSError(error.errno, error.strerror, self.file.name) from None
        self.tracking.log(kind, step, values)

    def close(self) -> None:
        if self.file:
            self.file.close()
        self.tracking.finish()


def open_metrics(
    config: RunConfig, folder: Path, resumed_at: int | None, refreshed: int | None, say: Callable[[str], None]
) -> Metrics:
    """The run's, with the trackers of `--report_to` started; see `Metrics` and `start_tracking`."""
    if collectives.rank() != 0:
        return Metrics(None)
    tracking = start_tracking(config.run.report_to, TrackedRun(folder, config.flat(), resumed_at), say)
    return Metrics(folder, resumed_at, refreshed, say, tracking)


def open_lines(folder: Path, resumed_at: int | None, refreshed: int | None, say: Callable[[str], None]) -> IO[str]:
    """The file, to be appended to, with the lines that a resumed run keeps. Where lines are damaged, the file as it was
    is kept beside."""
    path = folder / "metrics.jsonl"
    kept, unread = lines_up_to(path, resumed_at, refreshed) if resumed_at is not None else ([], 0)
    if unread:
        names = (path.with_name(f"{path.name}.damaged-{n}") for n in range(1, 1 << 30))
        aside = next(name for name in names if not name.exists())
        os.replace(path, aside)
        say(f"warning: {unread} lines of {path} are damaged; it is kept as {aside.name}")
    with replacing(path) as stream:
        stream.writelines(kept)
    return path.open("a", encoding="utf-8")


def lines_up_to(file: Path, step: int, refreshed: int | None = None) -> tuple[list[str], int]:
    """Lines of steps up to this one, without this one's index stage where that is done again; and how many could not be
    read, but for a last one that a crash has cut short."""
    again = INDEX_STAGE if refreshed is not None and refreshed < step else ()
    kept, unread = [], 0
    for line in file.read_bytes().splitlines(keepends=True) if file.exists() else []:
        if not line.endswith(b"\n"):
            continue
        try:
            entry = json.loads(line.decode("utf-8"))
            if entry["step"] <= step and not (entry["step"] == step and entry["kind"] in again):
                kept.append(line.decode("utf-8"))
        except (ValueError, KeyError, TypeError, RecursionError):
            unread += 1
    return kept, unread
