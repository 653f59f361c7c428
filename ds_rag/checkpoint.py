"""Saving a run to continue it, finding where to continue, and exporting folders that other tools open."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ds_rag import dist
from ds_rag.engine import Engines
from ds_rag.errors import UserError
from ds_rag.models.sharded import is_sharded
from ds_rag.random_state import random_states, set_random_states


@dataclass
class TrainState:
    """Where a run stands, beside weights and optimizer."""

    step: int = 0  # optimizer steps done
    best: float | None = None  # best value of the chosen metric
    best_step: int | None = None
    evaluations_without_gain: int = 0
    skipped: int = 0
    world: int = 1
    before: dict[str, float] | None = None  # metrics before training


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    folders = [f for f in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", f.name)]
    return sorted((f for f in folders if (f / "state.json").is_file()), key=lambda f: int(f.name[5:]))


def save(
    run: Path, engines: Engines, state: TrainState, keep: int, arrays: Mapping[str, np.ndarray] | None = None
) -> None:
    """All ranks write both engines and their random states to a temporary folder, which is then renamed; older
    checkpoints beyond `keep` go, except the best one. arrays: what rank 0 keeps beside them, as NAME.npy."""
    final = run / "checkpoints" / f"step-{state.step}"
    folder = final.with_name(final.name + ".tmp")
    if dist.rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    dist.barrier()
    for name, engine in engines.learning.items():
        engine.save_checkpoint(str(folder), tag=name, save_latest=False)
    torch.save(random_states(), folder / f"random-rank{dist.rank()}.pt")
    dist.barrier()
    if dist.rank() == 0:
        for name, array in (arrays or {}).items():
            np.save(folder / f"{name}.npy", array)
        (folder / "state.json").write_text(json.dumps(asdict(state), indent=1))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(folder, final)
        complete = checkpoints(run)
        for old in complete[: max(0, len(complete) - max(1, keep))]:
            if old.name != f"step-{state.best_step}":
                shutil.rmtree(old)
    dist.barrier()


def find(run: Path, resume: str) -> Path | None:
    """The checkpoint to continue from: None under 'never', and under 'auto' when there is none yet.

    An explicit path is a checkpoint or a run; one that holds none is an error, never a start at step 0.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return checkpoints(run)[-1] if checkpoints(run) else None
    path = Path(resume)
    if (path / "state.json").is_file():
        return path
    if not checkpoints(path):
        raise UserError(
            f"--resume {resume}: no checkpoint there",
            expected="a run folder with checkpoints/step-N, or such a step-N folder",
            fix="--resume auto starts anew where there is none",
        )
    return checkpoints(path)[-1]


def load(folder: Path, engines: Engines) -> TrainState:
    """Restores weights, optimizers and random states on every rank."""
    state = TrainState(**json.loads((folder / "state.json").read_text()))
    if state.world != dist.world():
        raise UserError(
            f"{folder}: saved by another number of processes",
            found=f"{dist.world()} now",
            expected=state.world,
            fix=f"launch with {state.world}",
        )
    load_engines(folder, engines)
    set_random_states(torch.load(folder / f"random-rank{dist.rank()}.pt", weights_only=True))
    return state


def load_engines(folder: Path, engines: Engines, weights_only: bool = False) -> None:
    """Both engines from a checkpoint; `weights_only` leaves the optimizers as they are (but at stage 3, where DeepSpeed
    loads weights only together with them)."""
    held = {f.name for f in folder.iterdir() if f.is_dir()}
    if held != set(engines.learning):  # one held but frozen now would start from its first weights
        raise UserError(
            f"{folder}: holds other models than those that learn now",
            found=", ".join(sorted(held)) or "none",
            expected=", ".join(sorted(engines.learning)),
            fix="resume with the same --freeze and --objective",
        )
    for name, engine in engines.learning.items():
        alone = weights_only and not is_sharded(engine.module)
        with torch.serialization.safe_globals(classes_of_shards()):
            engine.load_checkpoint(
                str(folder),
                tag=name,
                load_module_only=alone,
                load_optimizer_states=not alone,
                load_lr_scheduler_states=not alone,
            )


def classes_of_shards() -> list[Any]:
    """What DeepSpeed pickles beside tensors; nothing else of a shard is unpickled (`forbid_pickles`)."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def export(run: Path, engines: Engines, cards: dict[str, str]) -> None:
    """`run/retriever` for sentence-transformers and `run/generator` for transformers, each with its card.

    Rank 0 writes; the others help to gather what ZeRO-3 keeps in pieces.
    """
    first = dist.rank() == 0
    for name, module in engines.modules.items():
        state = engines.whole_state(name, keep=first)
        if first:
            saved: Any = module
            saved.save(run / name, state)
            (run / name / "README.md").write_text(cards[name], encoding="utf-8")
    dist.barrier()
