"""Saving a run to continue it, and finding where to continue.

    RUN/checkpoints/LATEST                      name of the newest checkpoint
    RUN/checkpoints/step-N/manifest.json        size and hash of every file, and facts about the run
                    /retriever/, /generator/    complete parameters and optimizer states (engines/state_files.py)
                    /random-rankR.safetensors   random states of each rank
                    /state.json                 the run's progress (`TrainState`)
                    /*.npy                      the candidates that the index supplied for each row

A checkpoint is complete or absent (atomic_folders.py), and is verified before it is opened. Its files are written and
read by checkpoint_files.py alone; here is which checkpoints a run has.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ds_rag.engines.engine_pair import Engines
from ds_rag.run import export
from ds_rag.run.checkpoint_files import (
    read_engine,
    read_random_states,
    read_state,
    saved_engines,
    write_checkpoint,
)
from ds_rag.runtime import atomic_folders, collectives, fault_injection, stop_signals
from ds_rag.runtime.atomic_files import write_complete
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.own_files import CHECKPOINT
from ds_rag.runtime.random_state import set_random_states

LATEST = "LATEST"
LEAST_KEPT = 2  # one may turn out to be damaged
STEP = re.compile(r"step-\d+")
ABANDONED = "abandoned-"  # prefix of checkpoints that are newer than the one from which the run was resumed


@dataclass
class TrainState:
    """The progress of a run, without weights and optimizer."""

    step: int = 0  # optimizer steps done
    best: float | None = None  # best value of the chosen metric
    best_step: int | None = None
    evaluations_without_gain: int = 0
    skipped: int = 0
    gated: int = 0  # queries that taught nothing, because they did not pass the gate
    refreshed: int = -1  # the last step whose index stage was done before this checkpoint was saved
    before: dict[str, float] | None = None  # metrics before training
    lexical_before: dict[str, dict[str, float]] | None = None  # of BM25, and of it with the retriever before training
    before_trust: dict[str, Any] = field(default_factory=dict)  # their n, intervals and signature
    watched: dict[str, Any] = field(default_factory=dict)  # the memory of the watchers (watchers.py)


def checkpoints(run: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first, without verifying them. One without a manifest is damaged: a
    folder gets the name step-N after its manifest is written, and loses the name before any file is deleted."""
    folders = [f for f in (run / "checkpoints").glob("step-*") if STEP.fullmatch(f.name) and f.is_dir()]
    return sorted(folders, key=lambda f: int(f.name[5:]))


def save(
    run: Path,
    engines: Engines,
    state: TrainState,
    keep: int,
    facts: Mapping[str, Any] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Saves a checkpoint of `state.step`; called by all ranks together. Deletes older ones beyond the newest `keep`,
    except the best one.

    facts: what the run is, for the manifest (resume_rules.py). arrays: further arrays that rank 0 saves as NAME.npy.
    Raises OSError on every rank if one of them could not write; earlier checkpoints are then unchanged.
    """
    stop_signals.phase(f"saving the checkpoint of step {state.step}")
    root, final = run / "checkpoints", run / "checkpoints" / f"step-{state.step}"
    about = {"kind": "checkpoint", "step": state.step, "world": collectives.world(), **(facts or {})}
    write_checkpoint(final, about, engines, asdict(state), arrays or {})

    def name_it() -> None:
        fault_injection.point("before_latest")
        write_complete(root / LATEST, final.name)
        fault_injection.point("after_latest")

    atomic_folders.agree(LATEST, atomic_folders.attempt(name_it) if collectives.rank() == 0 else None)
    if collectives.rank() == 0:
        prune(run, keep, state.best_step)
    collectives.barrier()


def prune(run: Path, keep: int, best_step: int | None) -> None:
    """Deletes old checkpoints and those that an earlier resume put aside. To be called once a newer one is complete."""
    old = checkpoints(run)[: -max(LEAST_KEPT, keep)]
    for folder in (*abandoned(run), *(f for f in old if f.name != f"step-{best_step}")):
        remove(folder)


def remove(folder: Path) -> None:
    """Deletes a checkpoint, of a link only the link. A folder that contains a file of the user's is renamed instead."""
    gone = folder.with_name(f"{folder.name}{atomic_folders.PARTIAL}pruned")  # a half deleted one must not look finished
    if folder.is_symlink():
        folder.unlink()
    elif atomic_folders.strangers(folder, CHECKPOINT):
        os.rename(folder, folder.with_name(f"kept-{folder.name}-{uuid.uuid4().hex[:8]}"))
    else:
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(OSError):
            os.rename(folder, gone)
        fault_injection.point("prune")
        shutil.rmtree(gone, ignore_errors=True)


def abandoned(run: Path) -> list[Path]:
    folders = (run / "checkpoints").glob(f"{ABANDONED}*")
    return sorted(f for f in folders if STEP.fullmatch(f.name.removeprefix(ABANDONED)) and f.is_dir())


def tidy(run: Path, source: Path | None, say: Callable[[str], None] = lambda text: None) -> None:
    """Deletes what an interrupted save or deletion left behind and points LATEST at `source`, the checkpoint from which
    the run is resumed (None: a new run). Checkpoints of later steps are put aside under another name, and deleted after
    the next save; so are all, and LATEST is deleted, where `source` is another run's. All ranks call it together."""
    root = run / "checkpoints"
    if collectives.rank() == 0 and root.is_dir():
        for torn in atomic_folders.partials(root):
            shutil.rmtree(torn, ignore_errors=True)
        for torn in root.glob(f"{LATEST}.tmp*"):  # a file
            torn.unlink(missing_ok=True)
        own = is_of(run, source)
        for other in checkpoints(run) if source is not None else []:
            if not own or int(other.name[5:]) > int(source.name[5:]):  # type: ignore[union-attr]
                aside = other.with_name(ABANDONED + other.name)
                if aside.is_dir():
                    remove(aside)
                os.rename(other, aside)
                say(f"note: {other} is not what the run resumes from; it is deleted once the next one is saved")
        if own and source is not None:
            write_complete(root / LATEST, source.name)
        elif source is not None:
            (root / LATEST).unlink(missing_ok=True)
    collectives.barrier()


def is_of(run: Path, folder: Path | None) -> bool:
    """Whether this folder is one of the run's own checkpoints."""
    return folder is not None and folder.resolve().parent == (run / "checkpoints").resolve()


def find(run: Path, resume: str, say: Callable[[str], None] = lambda text: None) -> Path | None:
    """The checkpoint to resume from, the same on all ranks; None for 'never', and for 'auto' if there is none yet.

    resume: 'never', 'auto' (the newest one that is not damaged; damaged ones are reported), or the path of a checkpoint
    or of a run. Raises UserError if the named one is missing or damaged, or if 'auto' finds only damaged ones: a run
    must not silently start again at step 0.
    """
    if resume == "never":
        return None
    export.by_first(lambda: export.settle(run))
    if resume == "auto":
        return newest_sound(run, say)
    path = collectives.from_first(checkpoint_at(Path(resume)))  # a file system may show other ranks an older state
    if path is None:
        raise UserError(
            f"--resume {resume}: no checkpoint there",
            expected="a run folder with checkpoints/step-N, or such a step-N folder",
            fix="--resume auto starts anew where there is none",
        )
    if wrong := atomic_folders.damages_on_ranks(path):
        raise atomic_folders.refuse(
            path, wrong, "another checkpoint, or --resume auto, which takes the newest sound one"
        )
    return path


def checkpoint_at(path: Path) -> Path | None:
    """`path` itself if it is a checkpoint; the newest one if it is a run; None where there is none."""
    is_run = (path / "config.json").exists() or (path / "checkpoints").is_dir()
    if ((path / atomic_folders.MANIFEST).is_file() and not is_run) or (STEP.fullmatch(path.name) and path.is_dir()):
        return path
    return next(reversed(checkpoints(path)), None)


def newest_sound(run: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is not damaged, the same on all ranks, as rank 0 sees the folder; None where there is
    none yet. Raises UserError where there are only damaged ones."""
    for torn in atomic_folders.partials(run / "checkpoints"):
        say(f"note: {torn.name} was never finished; it is ignored and removed")
    latest = run / "checkpoints" / LATEST
    named = named_by(latest)
    aside = [f.name for f in abandoned(run)]
    every, named, aside = collectives.from_first((checkpoints(run), named, aside))
    if named and named not in [f.name for f in every]:
        say(f"warning: {latest} names {named}, which is not there")
    for folder in reversed(every):
        wrong = atomic_folders.damages_on_ranks(folder)
        if not wrong:
            return folder
        say(f"warning: {folder} is damaged and passed over: {'; '.join(map(str, wrong[:3]))}")
    if aside and not every:  # it was resumed from another run's checkpoint and has not saved one since
        raise UserError(
            f"--resume auto: {run} has put its checkpoints aside to go on from another run's",
            found=", ".join(aside),
            expected="a checkpoint saved since",
            fix="the same --resume PATH again, or rename one of these to step-N",
        )
    if every or named:
        raise UserError(
            f"--resume auto: no checkpoint of {run} is sound",
            found=", ".join(f.name for f in every) or f"none, where {LATEST} names {named}",
            fix="ds-rag verify RUN says what is damaged; another --output_dir starts anew",
        )
    return None


def named_by(latest: Path) -> str:
    """The text in LATEST, unchecked; empty if the file is missing."""
    return latest.read_text(encoding="utf-8", errors="replace").strip() if latest.is_file() else ""


def load(folder: Path, engines: Engines, seed: int = 0) -> TrainState:
    """Restores weights, optimizers and random states on every rank, and returns the run's progress. On another number
    of ranks than the saved run's, random states are seeded anew from `seed`, step and rank."""
    state = state_of(folder)
    load_engines(folder, engines)
    if random := read_random_states(folder):
        set_random_states(random)
    else:
        torch.manual_seed(hash((seed, state.step, collectives.rank())) % 2**63)
    return state


def state_of(folder: Path) -> TrainState:
    """state.json of a checkpoint. Raises UserError for keys or types that this version does not know."""
    state: TrainState = read_state(folder, TrainState)
    return state


def load_engines(folder: Path, engines: Engines, weights_only: bool = False) -> None:
    """Loads both engines from a checkpoint. weights_only: the optimizers keep their states. Raises UserError where it
    holds other models, or other parameters, than those that are trained now."""
    stop_signals.phase(f"loading the checkpoint {folder.name}")
    fault_injection.point("load")
    held = saved_engines(folder)
    if held != set(engines.learning):  # a saved model that is frozen now would keep the weights that it started from
        raise UserError(
            f"{folder}: holds other models than those that are trained now",
            found=", ".join(sorted(held)) or "none",
            expected=", ".join(sorted(engines.learning)),
            fix="resume with the same --freeze and --objective",
        )
    for name, engine in engines.learning.items():
        try:
            read_engine(folder, name, engine, weights_only)
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{folder}: holds another {name}",
                found=str(error),
                expected="the parameters of the model that is trained now",
                fix=f"resume with the same --{name}, --encoders, --learn_temperature, --lexical_prior and --lora",
            ) from None
