"""What a run leaves at its end (models, index, figures, configuration) takes the place of what was there all together.

Several files and folders have no common rename. So they are written into a folder beside them (atomic_folders.py),
which one rename makes complete; from then on it is what the run has left. Its entries are moved to their places one
after the other, and a crash in between leaves the rest in that folder: whoever opens the run next moves it first
(`settle`).

    RUN/export.pending.tmp-X/    being written; after a crash it is nothing, and what was there before stands
    RUN/export.pending/          whole, on its way to the places below
    RUN/manifest.json            moved last: size and hash of every file of RUN/retriever, RUN/generator, config.json,
                                 results.json and after.* (the results per question). An index has a manifest of its
                                 own, for it may be made again alone.

What stood in the places goes, but for files that no manifest names: those the user has put there, and they are kept in
RUN/replaced-N.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ds_rag.evaluation.per_question import RUN, TABLE
from ds_rag.run import config_and_results
from ds_rag.runtime import atomic_folders, collectives, fault_injection, folder_lock, json_files, stop_signals
from ds_rag.runtime.atomic_files import sync_folder
from ds_rag.runtime.atomic_folders import MANIFEST, Damage
from ds_rag.runtime.errors import UserError

PENDING = "export.pending"
INDEX = "index"
AFTER = "after"  # what the names of the results per question begin with
QUESTIONS = (AFTER + TABLE, AFTER + RUN)
NAMES = ("retriever", "generator", INDEX, *QUESTIONS, json_files.RESULTS, json_files.CONFIG, MANIFEST)  # in this order
OLD = "replaced"  # within PENDING: what stood in the places
CARD = "README.md"  # people write on in a model's card: that is no damage


@contextmanager
def staged(run: Path) -> Iterator[Path]:
    """A folder, the same on every rank, in which to write what belongs at the places NAMES of `run` (but for the
    manifest). At the end of the block it is sealed and goes there; after an error what stood there stays.

    A collective; raises OSError on every rank where one could not write.
    """
    folder = atomic_folders.begin(run / PENDING)
    try:
        yield folder
        stop_signals.phase("putting what was exported in its places")
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
    """Finishes an export that a crash kept from its places. To be called by one process, before anything of `run` is
    opened. Raises UserError where another job holds the run, or it cannot be written."""
    if not (run / PENDING).is_dir():
        return
    try:
        with folder_lock.holding(run):
            put_in_place(run)
    except OSError as error:
        raise UserError(
            f"{run}: what the run left is on its way to its places, and cannot be moved there",
            found=error,
            expected="a folder that can be written",
            fix="see to that, then again",
        ) from None


def put_in_place(run: Path) -> None:
    """Moves what is still in PENDING; again after a crash it goes on. Raises OSError, UserError."""
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
            comes = name in manifest["names"] or name == MANIFEST
            if comes or name != INDEX:  # one that does not come along stays: it says itself whose it is
                move_entry(pending / name, run / name, old / name, comes)
        sync_folder(run)
    fault_injection.point("exchange")
    remove_replaced(run, old)
    with suppress(OSError):
        pending.rmdir()


def move_entry(new: Path, place: Path, old: Path, comes: bool) -> None:
    """`new` to its place, and what stood there to `old`; where none comes (no generator any more) that alone. A `new`
    that is gone was moved before."""
    waits = os.path.lexists(new)
    if os.path.lexists(place) and (waits or not comes):
        os.rename(place, old)
    fault_injection.point("exchange")
    if waits:
        os.rename(new, place)


def remove_replaced(run: Path, old: Path) -> None:
    """Removes what was replaced; the user's own files in it are kept, in RUN/replaced-N."""
    if not old.is_dir():
        return
    own = own_files_of(run, old)
    files = [f for f in old.rglob("*") if f.is_symlink() or not f.is_dir()]
    for file in sorted(files, key=lambda f: f.name == MANIFEST):  # manifests last: after a crash they are needed again
        if not file.is_symlink() and own(file.relative_to(old).as_posix(), file):
            file.unlink()
    for folder, _, _ in os.walk(old, topdown=False):
        with suppress(OSError):  # not empty
            os.rmdir(folder)
    if old.is_dir():
        number = next(n for n in range(1, 1 << 30) if not (run / f"{OLD}-{n}").exists())
        os.rename(old, run / f"{OLD}-{number}")


def own_files_of(run: Path, old: Path) -> Callable[[str, Path], bool]:
    """Tells the run's own files among what was replaced: those its manifest names, or, where it had none (a run
    from before there were manifests), those of the same names as today's."""
    before, now = atomic_folders.read_manifest(old), atomic_folders.read_manifest(run) or {"files": {}}
    index = atomic_folders.read_manifest(old / INDEX) or {"files": {}}
    names = {*(now if before is None else before)["files"], json_files.RESULTS, json_files.CONFIG, MANIFEST}
    names |= {f"{INDEX}/{name}" for name in (*index["files"], MANIFEST)}

    def own(name: str, file: Path) -> bool:
        written = (before or {}).get("files", {}).get(name)
        changed = name.endswith(f"/{CARD}") and written is not None and atomic_folders.measure(file) != written
        return name in names and not changed

    return own


def damages(run: Path, hashes: bool = True) -> list[Damage]:
    """What of a run is not as it was written; empty, too, where nothing was exported yet, and for a run from before
    there were manifests. hashes: see `commit.damages`."""
    if not (run / MANIFEST).exists():
        lost = exported(run) and config_and_results.has_version(run)
        return [Damage(MANIFEST, "none", "the one that the models were written with")] if lost else []
    return [d for d in atomic_folders.damages(run, hashes) if Path(d.file).name != CARD]


def exported(run: Path) -> bool:
    """Has the run left models, of this version or the one before?"""
    return (run / "retriever").is_dir()


def ready(run: Path, hashes: bool = True, only: Collection[str] = NAMES) -> dict[str, Any]:
    """Before these files and folders of `run` are opened, on all ranks together: finishes its export, and holds them
    against its manifest, which is returned; empty where there is none. Raises UserError for what is damaged."""

    def check_all() -> None:
        settle(run)
        json_files.check_kinds(run)
        if wrong := [d for d in damages(run, hashes) if Path(d.file).parts[0] in only]:
            fix = f"{json_files.AGAIN}; of models changed on purpose: --retriever FOLDER --generator FOLDER"
            raise atomic_folders.refuse(run, wrong, fix)

    by_first(check_all)
    return atomic_folders.read_manifest(run) or {}


def by_first(work: Callable[[], None]) -> None:
    """Rank 0 does it; what the user can mend is raised on every rank. A collective."""
    error = None
    if collectives.rank() == 0:
        try:
            work()
        except UserError as met:
            error = met
    if (error := collectives.from_first(error)) is not None:
        raise error
