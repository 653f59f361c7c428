"""RUN/folds.json: which documents a run holds out, so that it keeps its split when it is resumed and evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ds_rag.config import RunConfig
from ds_rag.data.splits import Split, split_of_json
from ds_rag.runtime import atomic_folders, collectives, json_files
from ds_rag.runtime.atomic_files import write_complete

FILE = "folds.json"


def read_split(run: Path | None) -> Split | None:
    """A run's split; None where it has none. Raises UserError for a file that holds something else."""
    if run is None or not (run / FILE).exists():
        return None
    return split_of_json(json_files.read_json(run / FILE, dict), str(run / FILE))


def split_of_run(folder: Path, resumed: Path | None) -> Split | None:
    """The split that a run in this folder already has, or else that of the run whose checkpoint it goes on from; the
    same on every rank. A collective."""
    found = None
    if collectives.rank() == 0:
        found = read_split(folder) or read_split(resumed.parents[1] if resumed else None)
    split: Split | None = collectives.from_first(found)
    return split


def write_split(folder: Path, split: Split | None) -> None:
    """On rank 0, where there is one."""
    if split is not None and collectives.rank() == 0:
        write_complete(folder / FILE, json.dumps(split.to_json(), indent=1, sort_keys=True) + "\n")


def keep_whole(resumed: Path, config: RunConfig, say: Callable[[str], None]) -> None:
    """A run of before there was `--eval_fraction` goes on with all its rows, whatever a recipe says by now."""
    then = (atomic_folders.read_manifest(resumed) or {}).get("config")
    data = config.data
    if not isinstance(then, dict) or "eval_fraction" in then or "eval_fraction" in config.flags:
        return
    if data.eval_fraction and data.eval_data is None and not config.is_builtin and not data.folds:
        say("note: --eval_fraction 0: this run was begun without held-out rows, and goes on so")
        data.eval_fraction = 0.0
