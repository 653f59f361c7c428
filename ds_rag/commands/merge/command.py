"""`ds-rag merge --run RUN`: adds trained adapters to the weights of their bases, and saves models without adapters."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from ds_rag.models.adapters import ADAPTER_FILE
from ds_rag.run import export
from ds_rag.run.open_saved import Saved, open_saved
from ds_rag.run.output_dir import check_beside_run
from ds_rag.runtime import atomic_folders, folder_lock
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError, not_written
from ds_rag.runtime.output_places import check_place


def main(args: argparse.Namespace) -> int:
    """Runs the command. `open_saved` adds each adapter to its base; the sums are saved."""
    if not args.run:
        raise UserError("no run to merge", expected="--run RUN")
    run = Path(args.run)
    out = Path(args.out) if args.out is not None else run / "merged"
    export.ready(run, hashes=False)
    names = [name for name in ("retriever", "generator") if any((run / name).rglob(ADAPTER_FILE))]
    if not names:
        raise UserError(
            f"{run}: nothing to merge", found="models without adapters", expected=f"{ADAPTER_FILE} in one of them"
        )
    place = check_place(out, "--out")
    check_beside_run(place, "--out")
    if place.exists() and (not place.is_dir() or os.path.ismount(place) or any(place.iterdir())):
        raise UserError("--out: something is there", found=out, expected="a new or empty folder")
    console = Console()
    args.load_in_4bit = "none"  # add in full precision, even if the adapter was trained with a quantized base
    saved = open_saved(args)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with folder_lock.holding_place(place):
            write(saved, names, run, place)
    except OSError as error:
        raise not_written(
            "the merged models", error, place.parent, "correct this, then run the command again"
        ) from None
    for name in names:
        console.say(f"{name:10} {out / name}")
    return 0


def write(saved: Saved, names: list[str], run: Path, place: Path) -> None:
    """Saves the models into a temporary folder and renames it to `place`, so that never only one of a pair is there."""
    part = atomic_folders.begin(place)
    try:
        for name in names:
            model = saved.retriever if name == "retriever" else saved.generator
            assert model is not None
            model.save(part / name)
            if (run / name / "README.md").is_file():
                shutil.copy(run / name / "README.md", part / name)
        os.rename(part, place)  # fails if something was created there meanwhile
    finally:
        shutil.rmtree(part, ignore_errors=True)
