"""A checkpoint's files: what they hold, read by hand; and another library in place of the one that writes them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import small_parts

from ds_rag.config import OptimConfig
from ds_rag.engines.optimizer import adamw
from ds_rag.engines.plain import PlainEngine
from ds_rag.engines.state import full_tensors, numbers, restore
from ds_rag.run import checkpoint, checkpoint_files
from ds_rag.run.assemble import Parts
from ds_rag.run.checkpoint import TrainState
from ds_rag.run.checkpoint_files import read_array
from ds_rag.runtime import atomic_folders
from ds_rag.runtime.errors import UserError
from ds_rag.train import train_step

STATE = TrainState(step=2, best=0.5, best_step=1, watched={"norm": [1.0, 2.0]})
TABLE = np.arange(12, dtype=np.int32).reshape(3, 4)


def make_parts() -> Parts:
    return small_parts(2, engine=lambda name, module: PlainEngine(module, adamw(module, OptimConfig(), 1e-2)))


def after(steps: int) -> Parts:
    parts = make_parts()
    for n in range(steps):
        train_step(parts, n, 1.0)
    return parts


def save(run: Path, parts: Parts) -> Path:
    checkpoint.save(run, parts.engines, STATE, 2, {"objective": "x"}, {"candidates-1": TABLE})
    return run / "checkpoints" / "step-2"


def test_what_the_files_hold(tmp_path):
    """The layout of every version so far: checkpoints that exist stay readable."""
    parts = after(2)
    folder = save(tmp_path, parts)
    files = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    assert files == {"manifest.json", "state.json", "random-rank0.safetensors", "candidates-1.npy"} | {
        f"{name}/{file}" for name in parts.engines.learning for file in ("numbers.json", "rank0000-0000.safetensors")
    }
    assert json.loads((folder / "state.json").read_text()) == asdict(STATE)
    manifest = atomic_folders.read_manifest(folder)
    assert manifest and {k: manifest[k] for k in ("kind", "step", "world", "objective")} == {
        **{"kind": "checkpoint", "step": 2, "world": 1, "objective": "x"}
    }
    for name, engine in parts.engines.learning.items():
        held = load_file(folder / name / "rank0000-0000.safetensors")
        expected: dict[str, torch.Tensor] = {}
        for key, p in engine.module.named_parameters():
            if p.requires_grad:
                moments = engine.optimizer.state[p]
                expected |= {f"{key}:master": p.detach().flatten(), f"{key}:exp_avg": moments["exp_avg"].flatten()}
                expected |= {f"{key}:exp_avg_sq": moments["exp_avg_sq"].flatten()}
        assert held.keys() == expected.keys() and all(torch.equal(held[k], expected[k]) for k in held)
        assert json.loads((folder / name / "numbers.json").read_text())["scalars"] == {"step": 2.0}
    found = read_array(folder, "candidates-")
    assert found and found[0] == "1" and np.array_equal(found[1], TABLE) and read_array(folder, "other-") is None


def save_as_one_file(engine: Any, folder: Path) -> str | None:
    """By torch.save: everything in one file."""
    folder.mkdir()
    torch.save({"tensors": dict(full_tensors(engine)), "numbers": numbers(engine)}, folder / "all.pt")
    return None


class Tensors:
    def __init__(self, tensors: dict[str, torch.Tensor]):
        self.tensors = tensors

    def size(self, name: str) -> int:
        return self.tensors[name].numel()

    def part(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.tensors[name][start:stop]


def load_from_one_file(engine: Any, folder: Path, weights_only: bool = False) -> None:
    saved = torch.load(folder / "all.pt", weights_only=True)
    restore(engine, saved["numbers"], Tensors(saved["tensors"]), weights_only)


def weights(parts: Parts) -> list[torch.Tensor]:
    return [p.detach().clone() for module in parts.engines.modules.values() for p in module.parameters()]


@pytest.mark.parametrize("own", [False, True], ids=["safetensors", "torch.save"])
def test_another_writer_is_two_functions(tmp_path, monkeypatch, own):
    if own:
        monkeypatch.setattr(checkpoint_files, "save_engine", save_as_one_file)
        monkeypatch.setattr(checkpoint_files, "load_engine", load_from_one_file)
    went_on, resumed, fresh = after(2), make_parts(), make_parts()
    folder = save(tmp_path, went_on)
    assert (folder / "retriever/all.pt").is_file() == own and not atomic_folders.damages(folder)
    assert checkpoint.load(folder, resumed.engines) == STATE
    assert checkpoint.find(tmp_path, "auto") == folder
    for parts in (went_on, resumed, fresh):
        train_step(parts, 2, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(weights(went_on), weights(resumed), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(went_on), weights(fresh), strict=True))


def test_parameters_of_another_shape_are_refused(tmp_path):
    parts = after(1)
    folder = save(tmp_path, parts)
    other = make_parts()
    name, p = next((n, p) for n, p in other.retriever.named_parameters() if p.requires_grad)
    p.data = torch.zeros(p.numel() + 1)
    with pytest.raises(UserError, match="holds another retriever") as caught:
        checkpoint.load(folder, other.engines)
    assert f"{name}: {p.numel() - 1} elements, expected {p.numel()}" in str(caught.value)
