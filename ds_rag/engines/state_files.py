"""An engine's state as files: tensors in safetensors, numbers in JSON.

To write checkpoints with another library, change this file: `save_engine` gets the tensors and numbers from state.py,
and `load_engine` gives them back by name and range.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ds_rag.engines.state import full_tensors, numbers, restore
from ds_rag.runtime import collectives
from ds_rag.runtime.output_places import follow_umask

FILE_BYTES = 1 << 30  # size at which a new file is started: a rank keeps about this much in memory while saving


def save_engine(engine: Any, folder: Path) -> str | None:
    """Writes `folder`: each rank writes some of the parameters, in files of about FILE_BYTES, and rank 0 the numbers.

    Returns the error message of this rank, or None. After an error the rank continues, because the others need it for
    their parameters. A collective.
    """
    from safetensors.torch import save_file

    waiting: dict[str, torch.Tensor] = {}
    count, failure = 0, None

    def write() -> None:
        nonlocal waiting, count, failure
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if waiting:
                file = folder / f"rank{collectives.rank():04d}-{count:04d}.safetensors"
                save_file(waiting, file)
                follow_umask([file])
        except Exception as error:  # for a full disk safetensors raises an exception of its own
            failure = failure or f"{type(error).__name__}: {error}"
        waiting, count = {}, count + 1

    for name, tensor in full_tensors(engine):
        if tensor.numel():
            waiting[name] = tensor
        if sum(t.nbytes for t in waiting.values()) >= FILE_BYTES:
            write()
    write()
    if collectives.rank() == 0 and failure is None:
        try:
            (folder / "numbers.json").write_text(json.dumps(numbers(engine), indent=1), encoding="utf-8")
        except OSError as error:
            failure = str(error)
    return failure


class SafetensorsFiles:
    """The tensors of a folder's safetensors files, a `state.FullTensors`. Only the ranges that are read are loaded."""

    def __init__(self, folder: Path):
        from safetensors import safe_open

        files = [safe_open(file, framework="pt") for file in sorted(folder.glob("*.safetensors"))]
        self.file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a dict)

    def size(self, name: str) -> int:
        (count,) = self.file_of[name].get_slice(name).get_shape()
        return int(count)

    def part(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.file_of[name].get_slice(name)[start:stop]


def load_engine(engine: Any, folder: Path, weights_only: bool = False) -> None:
    """Loads this rank's shards from `folder`. weights_only: do not change the optimizer's state.

    Raises KeyError for a parameter that is not in the folder, ValueError for one of another size.
    """
    saved = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
    restore(engine, saved, SafetensorsFiles(folder), weights_only)
