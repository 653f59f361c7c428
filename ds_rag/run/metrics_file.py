"""`metrics.jsonl`: the figures of a run, one JSON object per line. Trackers are sent the same figures."""

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
from ds_rag.runtime.errors import UserError

INDEX_STAGE = ("refresh", "candidates", "scores", "eval")  # kinds of lines that the index stage writes


class Metrics:
    """Writes the file and logs to the trackers, on rank 0; on other ranks it does nothing."""

    def __init__(
        self,
        folder: Path | None,
        resumed_at: int | None = None,
        refreshed: int | None = None,
        say: Callable[[str], None] = lambda text: None,
        tracking: Tracking | None = None,
    ):
        """folder: the run's; None: nothing is written. resumed_at: the step of the checkpoint; lines of later steps are
        removed, because these steps are repeated; None: a new run. refreshed: the last step whose index stage was done
        when the checkpoint was saved. say: is given a warning if lines are damaged."""
        self.file = open_lines(folder, resumed_at, refreshed, say) if folder else None
        self.tracking = tracking or Tracking()

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Writes a line, without buffering. Raises OSError with the file's name."""
        if not self.file:
            return
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        try:
            self.file.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
            self.file.flush()
        except OSError as error:  # by itself it does not name the file
            raise OSError(error.errno, error.strerror, self.file.name) from None
        self.tracking.log(kind, step, values)

    def close(self) -> None:
        if self.file:
            self.file.close()
        self.tracking.finish()


def open_metrics(
    config: RunConfig, folder: Path, resumed_at: int | None, refreshed: int | None, say: Callable[[str], None]
) -> Metrics:
    """Opens the run's metrics file and starts the trackers of `--report_to`; see `Metrics` and `start_tracking`."""
    if collectives.rank() != 0:
        return Metrics(None)
    tracking = start_tracking(config.run.report_to, TrackedRun(folder, config.flat(), resumed_at), say)
    return Metrics(folder, resumed_at, refreshed, say, tracking)


def open_lines(folder: Path, resumed_at: int | None, refreshed: int | None, say: Callable[[str], None]) -> IO[str]:
    """Opens the file for appending, with the lines that a resumed run keeps. If lines are damaged, the old file is
    kept under another name."""
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
    """(lines to keep, number of lines that cannot be read). Kept are lines of steps up to `step`, without its index
    stage if that is repeated (`refreshed` is an earlier step). A last line that a crash cut off does not count."""
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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; empty if there is no file. Lines that cannot be read (cut off by a crash, say) are
    skipped. Raises UserError if no line can be read."""
    lines, every = [], path.read_bytes().splitlines() if path.is_file() else []
    for text in every:
        try:
            line = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and is_number(line.get("step")):
            lines.append(line)
    if every and not lines:
        raise UserError(f"{path}: damaged", found=f"{len(every)} lines, and no JSON object with a step among them")
    return lines


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
