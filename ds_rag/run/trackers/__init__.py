"""Trackers: services and programs that show a run's figures, in addition to its own `metrics.jsonl`.

To add one: a file in this folder with `start(run) -> Tracker`, its line in TRACKERS, and an extra of its name in
pyproject.toml. The file is imported only where `--report_to` names it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ds_rag.runtime.atomic_files import write_complete
from ds_rag.runtime.errors import RunError, UserError, choose

# Name of a tracker (in --report_to, of its file in this folder, of its extra) -> the library that it imports.
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
IDS = "trackers.json"  # file in the run's folder with the run's id in each tracker
PROJECT = "ds_rag"  # the tracker's project, unless its environment variables name one


class Tracker(Protocol):
    """What a tracker's `start` returns. Called on rank 0 only. An exception ends the tracking, not the run."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Logs figures after `step` optimizer steps; there may be several calls for one step. Names are like
        `train/loss`."""

    def finish(self) -> None:
        """The run has ended or was stopped: nothing more is logged by this process."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is given when it starts."""

    folder: Path  # the run's
    config: dict[str, Any]  # every setting by name, without the credentials of addresses
    resumed_at: int | None = None  # the checkpoint's step; figures of later steps are logged again. None: a new run

    def known_id(self, tracker: str) -> str | None:
        """The id under which the tracker already has this run; None if it does not."""
        found = self._ids().get(tracker)
        return found if isinstance(found, str) else None

    def keep_id(self, tracker: str, value: str) -> None:
        """Saves the run's id in the run's folder, so that a resumed run continues under it."""
        write_complete(self.folder / IDS, json.dumps(self._ids() | {tracker: value}) + "\n")

    def _ids(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            found = json.loads((self.folder / IDS).read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
        return {}


def chosen_trackers(report_to: str) -> list[str]:
    """The names in `--report_to`, each once. Raises UserError for an unknown name."""
    names = list(dict.fromkeys(name.strip() for name in report_to.split(",")))
    if names == ["none"]:
        return []
    for name in names:
        choose(TRACKERS, name, "tracker in --report_to")
    return names


def check_installed(report_to: str) -> None:
    """Raises UserError for an unknown tracker and for one whose library is not installed; imports nothing."""
    for name in chosen_trackers(report_to):
        if find_spec(TRACKERS[name]) is None:
            raise absent(name)


def absent(name: str, error: ImportError | None = None) -> UserError:
    return UserError(f"--report_to {name}: not installed", found=error, fix=f"pip install 'ds_rag[{name}]'")


class Tracking:
    """The trackers of a run, on rank 0. A tracker that fails is not called again; this is reported once."""

    def __init__(self, trackers: Mapping[str, Tracker] | None = None, say: Callable[[str], None] = lambda text: None):
        self.trackers, self.say = dict(trackers or {}), say

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Logs the numbers of a line of metrics.jsonl, each named `kind/name`."""
        numbers = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
        if numbers:
            self._each(lambda tracker: tracker.log(step, numbers))

    def finish(self) -> None:
        self._each(lambda tracker: tracker.finish())
        self.trackers.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                act(tracker)
            except Exception as error:  # of any kind: the run is worth more
                del self.trackers[name]
                self.say(failed(name, error))


def failed(name: str, error: Exception) -> str:
    return f"warning: --report_to {name} failed, and the run continues without it ({type(error).__name__}: {error})"


def start_tracking(report_to: str, run: TrackedRun, say: Callable[[str], None]) -> Tracking:
    """Starts each tracker of `--report_to`. Raises UserError if a library is not installed, and RunError if a tracker
    of a new run does not start. A resumed run prints a warning and continues without it, because it may have been
    resumed by a scheduler."""
    started: dict[str, Tracker] = {}
    for name in chosen_trackers(report_to):
        try:
            started[name] = import_module(f"{__name__}.{name}").start(run)
        except ImportError as error:
            raise absent(name, error) from None
        except Exception as error:
            if run.resumed_at is None:
                found = f"{type(error).__name__}: {error}"
                raise RunError(
                    f"--report_to {name}: does not start", found=found, fix="set it up, or leave it out"
                ) from error
            say(failed(name, error))
    return Tracking(started, say)
