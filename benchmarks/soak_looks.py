"""What soak.py reads from a run's folder: what the run is doing, its finished checkpoints, files left behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ds_rag.run.checkpoint import LATEST, checkpoints
from ds_rag.runtime import atomic_folders

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "faults"))

from small_run import REFRESH, SAVE_STEPS, STEPS

BRIEF = ("save", "last save", "index")  # events that last tenths of a second
PLACES = ("start-up", "first index", "step", "save", "index stage", "the end")


class Look:
    """Observes one start of `run`, begun at `began` (time.time())."""

    def __init__(self, run: Path, began: float):
        self.run, self.began = run, began
        self.stale = set(self.partials()) | set(self.indexes())  # of earlier starts

    def partials(self) -> list[Path]:
        return atomic_folders.partials(self.run / "checkpoints")

    def saving(self) -> bool:
        return bool(set(self.partials()) - self.stale)

    def indexes(self) -> list[Path]:
        """The folders in which the index stage encodes."""
        return sorted((self.run / "refresh").glob("step-*"))

    def indexing(self) -> bool:
        return bool(set(self.indexes()) - self.stale)

    def started(self) -> bool:
        """Whether the models are loaded: then every start writes metrics.jsonl again."""
        file = self.run / "metrics.jsonl"
        return file.exists() and file.stat().st_mtime >= self.began

    def done(self) -> int:
        """The number of steps done, by the metrics."""
        return max((line["step"] for line in metrics(self.run) if line["kind"] == "train"), default=0)

    def place(self) -> str:
        """What the run is doing: one of PLACES."""
        if not self.started():
            return "start-up"
        if self.saving():
            return "save"
        done, indexed = self.done(), {line["step"] for line in metrics(self.run) if line["kind"] == "eval"}
        if not indexed:
            return "first index"
        if done == STEPS:
            return "the end"
        return "index stage" if done % REFRESH == 0 and done not in indexed else "step"

    def signs(self) -> dict[str, Callable[[], bool]]:
        """Events near which a run can be killed -> function that says whether it has happened. Steps before the newest
        checkpoint are left out."""
        base = committed(self.run)
        found = {f"step {n}": self.reaches(n) for n in range(base + 1, STEPS + 1)}
        if base < STEPS:
            found |= {"save": self.saving, "last save": lambda: committed(self.run) == STEPS}
        return {"started": self.started, "index": self.indexing} | found

    def reaches(self, step: int) -> Callable[[], bool]:
        return lambda: self.started() and self.done() >= step


def metrics(run: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl: the run may just be writing the last one."""
    try:
        text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def committed(run: Path) -> int:
    """The step of the newest finished checkpoint; 0 if there is none."""
    return max((int(folder.name[5:]) for folder in checkpoints(run)), default=0)


def lost(run: Path, before: int, done: int) -> list[str]:
    """What a kill must not destroy but did: a finished checkpoint, or more steps than the interval between two.

    before: the step of the newest finished checkpoint before the kill; done: the number of steps done then."""
    sound = [int(folder.name[5:]) for folder in checkpoints(run) if not atomic_folders.damages(folder)]
    newest, wrong = max(sound, default=0), []
    if newest < before:
        wrong.append(f"step {before} was committed, step {newest} is the newest sound one")
    if done - newest > SAVE_STEPS:
        wrong.append(f"{done} steps were done, step {newest} is the newest sound checkpoint")
    pointer = run / "checkpoints" / LATEST
    if (
        pointer.exists()
        and f"step-{newest}" != pointer.read_text()
        and atomic_folders.damages(pointer.parent / pointer.read_text())
    ):
        wrong.append(f"{LATEST} names {pointer.read_text()}, which is not sound")
    return wrong


def leftovers(run: Path) -> list[str]:
    """What a finished run must not contain: incomplete files and folders, damaged checkpoints, an old LATEST."""
    names = [f.relative_to(run).as_posix() for f in sorted(run.rglob("*")) if ".tmp" in f.name]
    torn = [f.name for f in (run / "checkpoints").glob("step-*") if atomic_folders.PARTIAL not in f.name]
    names += [f"{name}, damaged" for name in sorted(torn) if atomic_folders.damages(run / "checkpoints" / name)]
    names += [name for name in ("refresh", "exit.json", "STOP", "export.pending") if (run / name).exists()]
    latest = (run / "checkpoints" / LATEST).read_text()
    if latest != f"step-{committed(run)}":
        names.append(f"{LATEST} that names {latest}")
    return names
