"""Exports the result of a run (models, index, results, configuration) so that all of it replaces the previous export
together.

Several files and folders cannot be replaced by one rename. So they are first written into a temporary folder
(atomic_folders.py). One rename marks that folder as complete; from then on its content is the run's export. Then its
entries are moved to their final places one by one. After a crash in between, the rest is still in that folder, and the
next process that opens the run moves it (`settle`).

    RUN/export.pending.tmp-X/    being written; after a crash it is ignored, and the previous export is unchanged
    RUN/export.pending/          complete; its entries are being moved to RUN
    RUN/manifest.json            moved last: size and hash of every file of RUN/retriever, RUN/generator, config.json,
                                 results.json. An index has its own manifest, because it can be rebuilt separately.

The previous export is deleted. Files in its folders that no manifest names are the user's: they are kept in
RUN/replaced-N.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ds_rag.run import config_and_results
from ds_rag.runtime import atomic_folders, collectives, fault_injection, folder_lock, json_files, stop_signals
from ds_rag.runtime.atomic_files import sync_folder
from ds_rag.runtime.atomic_folders import MANIFEST, Damage
from ds_rag.runtime.errors import UserError

PENDING = "export.pending"
INDEX = "index"
NAMES = ("retriever", "generator", INDEX, json_files.RESULTS, json_files.CONFIG, MANIFEST)  # moved in this order
OLD = "replaced"  # folder within PENDING: the previous export
CARD = "README.md"  # people edit a model's card: that is not damage


@contextmanager
def staged(run: Path) -> Iterator[Path]:
    """A folder, the same on every rank, in which to write the entries NAMES of `run`, except the manifest. At the end
    of the block they replace the previous export; after an error the previous export is unchanged.

    All ranks call it together. Raises OSError on every rank if one of them could not write.
    """
    folder = atomic_folders.begin(run / PENDING)
    try:
        yield folder
        stop_signals.phase("putting the exported files in place")
        names = sorted(f.name for f in folder.iterdir())
        atomic_folders.seal(folder, run / PENDING, {"kind": "run", "names": names}, apart=INDEX)
    except BaseException:
        if collectives.rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    atomic_folders.agree(
        "the export", atomic_folders.attempt(lambda: put_in_place(run)) if collectives.rank() == 0 else None
    )


def settle(run: Path) -> None:
    """Finishes an export that a crash interrupted while its entries were being moved. To be called by one process,
    before anything in `run` is opened. Raises UserError if another job holds the run, or its folder is not writable."""
    if not (run / PENDING).is_dir():
        return
    try:
        with folder_lock.holding(run):
            put_in_place(run)
    except OSError as error:
        raise UserError(
            f"{run}: an interrupted export cannot be finished, because its files cannot be moved into this folder",
            found=error,
            expected="a folder that can be written",
            fix="make it writable, then run the command again",
        ) from None


def put_in_place(run: Path) -> None:
    """Moves the entries that are still in PENDING to RUN, and deletes those that they replace. After a crash a second
    call continues. Raises OSError; UserError if the manifest in PENDING is damaged."""
    pending, old = run / PENDING, run / PENDING / OLD
    if os.path.lexists(pending / MANIFEST):
        manifest = atomic_folders.read_manifest(pending)
        if manifest is None or manifest.get("kind") != "run":
            wrong = [Damage(f"{PENDING}/{MANIFEST}", "one that is damaged", "the one that was written last")]
            raise atomic_folders.refuse(run, wrong, json_files.AGAIN)
        old.mkdir(exist_ok=True)
        for name in NAMES:
            if name == MANIFEST:
                sync_folder(run)
            fault_injection.point("exchange")
            exported_now = name in manifest["names"] or name == MANIFEST
            if exported_now or name != INDEX:  # without a new index the old one stays: its manifest names its model
                move_entry(pending / name, run / name, old / name, exported_now)
        sync_folder(run)
    fault_injection.point("exchange")
    remove_replaced(run, old)
    with suppress(OSError):
        pending.rmdir()


def move_entry(new: Path, place: Path, old: Path, exported_now: bool) -> None:
    """Moves what is at `place` to `old`, and `new` to `place`. exported_now: False if this export has no such entry (a
    run without a generator, say): then only the first. If `new` is missing, an earlier call has moved it already."""
    pending = os.path.lexists(new)
    if os.path.lexists(place) and (pending or not exported_now):
        os.rename(place, old)
    fault_injection.point("exchange")
    if pending:
        os.rename(new, place)


def remove_replaced(run: Path, old: Path) -> None:
    """Deletes the previous export, except the user's own files, which are kept in RUN/replaced-N."""
    if not old.is_dir():
        return
    own = own_files_of(run, old)
    files = [f for f in old.rglob("*") if f.is_symlink() or not f.is_dir()]
    for file in sorted(files, key=lambda f: f.name == MANIFEST):  # manifests last: a second call needs them
        if not file.is_symlink() and own(file.relative_to(old).as_posix(), file):
            file.unlink()
    for folder, _, _ in os.walk(old, topdown=False):
        with suppress(OSError):  # not empty
            os.rmdir(folder)
    if old.is_dir():
        number = next(n for n in range(1, 1 << 30) if not (run / f"{OLD}-{n}").exists())
        os.rename(old, run / f"{OLD}-{number}")


def own_files_of(run: Path, old: Path) -> Callable[[str, Path], bool]:
    """A function that says whether a file in `old`, by its relative path, was written by the run: if the old manifest
    names it, or, for runs from before there were manifests, if the new export has a file of the same name. A model's
    card that was edited is the user's."""
    before, now = atomic_folders.read_manifest(old), atomic_folders.read_manifest(run) or {"files": {}}
    index = atomic_folders.read_manifest(old / INDEX) or {"files": {}}
    names = {*(now if before is None else before)["files"], json_files.RESULTS, json_files.CONFIG, MANIFEST}
    names |= {f"{INDEX}/{name}" for name in (*index["files"], MANIFEST)}

    def own(name: str, file: Path) -> bool:
        written = (before or {}).get("files", {}).get(name)
        changed = name.endswith(f"/{CARD}") and written is not None and atomic_folders.measure(file) != written
        return name in names and not changed

    return own


def damages_of_export(run: Path, hashes: bool = True) -> list[Damage]:
    """The exported files that differ from the manifest. Empty if nothing has been exported yet, and for runs from
    before there were manifests. hashes: see `atomic_folders.damages`."""
    if not (run / MANIFEST).exists():
        lost = exported(run) and config_and_results.has_version(run)
        return [Damage(MANIFEST, "none", "the one that was written with the models")] if lost else []
    return [d for d in atomic_folders.damages(run, hashes) if Path(d.file).name != CARD]


def exported(run: Path) -> bool:
    """Whether the run has exported models, by any version."""
    return (run / "retriever").is_dir()


def ready(run: Path, hashes: bool = True, only: Collection[str] = NAMES) -> dict[str, Any]:
    """To be called on all ranks together before files of `run` are opened: finishes an interrupted export, verifies the
    files and returns the manifest (empty if there is none). Raises UserError for damaged files.

    hashes: compare hashes too, not only sizes; only: the entries to verify.
    """

    def check_all() -> None:
        settle(run)
        json_files.check_kinds(run)
        if wrong := [d for d in damages_of_export(run, hashes) if Path(d.file).parts[0] in only]:
            fix = f"{json_files.AGAIN}; of models changed on purpose: --retriever FOLDER --generator FOLDER"
            raise atomic_folders.refuse(run, wrong, fix)

    by_first(check_all)
    return atomic_folders.read_manifest(run) or {}


def by_first(work: Callable[[], None]) -> None:
    """Runs `work` on rank 0 alone; a UserError is raised on every rank. All ranks call it together."""
    error = None
    if collectives.rank() == 0:
        try:
            work()
        except UserError as met:
            error = met
    if (error := collectives.from_first(error)) is not None:
        raise error
