"""The files of one checkpoint: what `checkpoint.py` writes and reads, and nothing else knows.

To write checkpoints with another library, change this file (and `engines/state_files.py`, if only the engines' tensors
are concerned). When a checkpoint is saved, which are kept, and from which one a run resumes do not
depend on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ds_rag.engines.engine_pair import Engines
from ds_rag.engines.state_files import load_engine, save_engine
from ds_rag.runtime import atomic_folders, collectives, fault_injection, json_files
from ds_rag.runtime.output_places import follow_umask
from ds_rag.runtime.random_state import random_states

STATE = "state.json"


def write_checkpoint(
    final: Path,
    facts: dict[str, Any],
    engines: Engines,
    state: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Writes the folder `final`, which is complete or absent; called by all ranks together. facts: for the manifest;
    state: JSON values. `facts`, `state` and `arrays` are rank 0's. Raises OSError on every rank if one of them could
    not write."""
    folder = atomic_folders.begin(final)
    atomic_folders.seal(folder, final, facts, write_contents(folder, engines, state, arrays))


def write_contents(
    folder: Path, engines: Engines, state: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> str | None:
    """Writes this rank's files. Returns the error message, or None: other ranks must learn of an error first."""
    failure = None
    points = dict(zip(engines.learning, ("save_model", "save_optimizer"), strict=False))
    for name, engine in engines.learning.items():
        failure = save_engine(engine, folder / name) or failure
        failure = atomic_folders.attempt(lambda name=name: fault_injection.point(points[name])) or failure  # type: ignore[misc]
    return failure or atomic_folders.attempt(lambda: write_rest(folder, state, arrays))


def write_rest(folder: Path, state: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """All but the engines."""
    from safetensors.torch import save_file

    save_file(random_states(), file := random_file(folder))
    follow_umask([file])
    if collectives.rank() == 0:
        (folder / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)


def random_file(folder: Path) -> Path:
    return folder / f"random-rank{collectives.rank()}.safetensors"


def read_state(folder: Path, kind: type[Any]) -> Any:
    """The `state` as a dataclass of this kind. Raises UserError for keys or types that this version does not know."""
    file, by = folder / STATE, json_files.version_in(atomic_folders.read_manifest(folder) or {})
    return json_files.record(kind, json_files.read_json(file, dict), file, by)


def saved_engines(folder: Path) -> set[str]:
    """The names of the engines."""
    return {f.name for f in folder.iterdir() if f.is_dir()}


def read_engine(folder: Path, name: str, engine: Any, weights_only: bool) -> None:
    """Loads an engine; see `state_files.load_engine`, also for what it raises."""
    load_engine(engine, folder / name, weights_only)


def read_random_states(folder: Path) -> dict[str, torch.Tensor] | None:
    """This rank's random states; None if it has none there, or the number of ranks is another one now."""
    from safetensors.torch import load_file

    manifest, file = atomic_folders.read_manifest(folder) or {}, random_file(folder)
    return load_file(file) if manifest.get("world") == collectives.world() and file.is_file() else None


def read_array(folder: Path, prefix: str) -> tuple[str, np.ndarray] | None:
    """(the rest of its name, values) of the array whose name starts with `prefix`; None if there is none."""
    file = next(folder.glob(f"{prefix}*.npy"), None)
    return (file.stem.removeprefix(prefix), np.load(file)) if file else None
