"""Folders that are either complete or absent.

All ranks write into a folder beside the final one. Then every file is flushed to the disk and hashed, `manifest.json`
is written last, one rename gives the folder its final name, and the parent folder is flushed. A reader first checks
every file against the manifest, so that no incomplete, truncated or altered file is ever opened.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_rag.runtime import collectives, fault_injection, own_files, stop_signals
from ds_rag.runtime.atomic_files import sync_folder, write_complete
from ds_rag.runtime.errors import UserError

MANIFEST = "manifest.json"
PARTIAL = ".tmp-"
ASIDE = f"{PARTIAL}old-"  # what a new one is just replacing, where the two cannot change places in one step
# What was begun and not finished; `of` its final name. Eight digits are of the version before, and eight of 0 to 9 more
# likely a date, of a copy that a user made. Nobody gives a name of thirty-two.
LEFT = re.compile(r"(?P<of>.+)\.tmp-(?P<aside>old-)?([0-9a-f]{32}|(?=\d*[a-f])[0-9a-f]{8}|pruned)")


@dataclass(frozen=True)
class Damage:
    """One fault of a file in a folder."""

    file: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.file}: found {self.found}, expected {self.expected}"


def begin(final: Path) -> Path:
    """A new, empty folder beside `final`, the same on every rank, for all ranks to write into. Deletes what earlier
    attempts left behind. If `final` is a link, the new folder is beside its target. A collective; raises OSError on
    every rank if rank 0 could not create it."""
    final = Path(os.path.realpath(final))
    name = collectives.from_first(f"{final.name}{PARTIAL}{uuid.uuid4().hex}")
    folder = final.with_name(name)

    def make() -> None:
        fault_injection.point("begin")
        final.parent.mkdir(parents=True, exist_ok=True)
        put_back(final)
        for old in partials(final.parent, final.name):
            shutil.rmtree(old, ignore_errors=True)
        folder.mkdir()

    agree(final.name, attempt(make) if collectives.rank() == 0 else None)
    return folder


def partials(parent: Path, of: str = "", aside: bool = False) -> list[Path]:
    """Folders in `parent` that were begun and never finished. of: only those for that final name; aside: only those
    that were moved aside."""
    found = []
    for folder in sorted(parent.glob(f"*{PARTIAL}*")):
        left = LEFT.fullmatch(folder.name)
        if left and of in ("", left["of"]) and (left["aside"] or not aside) and folder.is_dir():
            found.append(folder)
    return found


def seal(folder: Path, final: Path, facts: dict[str, Any], failure: str | None = None, apart: str = "") -> None:
    """`folder` becomes `final`, which it replaces. A collective; `facts` are rank 0's and go into the manifest.

    failure: the error of this rank while writing, if any. apart: a subfolder that has a manifest of its own and is left
    out of this one. Raises OSError on every rank if any rank failed; then `folder` is removed, and the old `final`
    stays.
    """
    final = Path(os.path.realpath(final))
    agree(final.name, failure, folder)
    found = [f.relative_to(folder) for f in sorted(folder.rglob("*")) if f.is_file()]
    names = collectives.from_first([f.as_posix() for f in found if f.parts[0] != apart])
    mine: dict[str, dict[str, Any]] = {}
    try:
        for name in names[collectives.rank() :: collectives.world()]:
            mine[name] = measure(folder / name, to_disk=True)
    except OSError as error:
        failure = str(error)
    agree(final.name, failure, folder)
    files = {name: entry for part in collectives.gather_objects(mine) for name, entry in part.items()}
    if collectives.rank() == 0:
        try:
            fault_injection.point("before_manifest")
            manifest = facts | {"files": dict(sorted(files.items()))}
            write_complete(folder / MANIFEST, json.dumps(manifest | {"seal": seal_of(manifest)}, indent=1))
            for inner in {folder, *(f for f in folder.rglob("*") if f.is_dir())}:
                sync_folder(inner)
            fault_injection.point("before_rename")
            replace_folder(folder, final)
        except OSError as error:
            failure = str(error)
    agree(final.name, failure, folder)


def agree(what: str, failure: str | None, begun: Path | None = None) -> None:
    """Every rank continues, or every rank raises the error of the first rank that failed, and `begun` is deleted."""
    failures = [(r, f) for r, f in enumerate(collectives.gather_objects(failure)) if f]
    if not failures:
        return
    if begun is not None and collectives.rank() == 0:
        shutil.rmtree(begun, ignore_errors=True)
    rank, text = failures[0]
    raise OSError(f"{what} could not be written (rank {rank}): {text}")


def attempt(work: Callable[[], None]) -> str | None:
    """Runs `work`; returns the error message, or None. Other ranks must learn of an error before this one may stop."""
    try:
        work()
        return None
    except Exception as error:  # safetensors and faiss raise their own errors for a full disk
        return f"{type(error).__name__}: {error}"


def measure(file: Path, to_disk: bool = False) -> dict[str, Any]:
    """Size and sha256 of a file; to_disk: only after it is there."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        if to_disk:
            os.fsync(stream.fileno())
        while block := stream.read(1 << 20):
            digest.update(block)
        size = stream.tell()
    return {"size": size, "sha256": digest.hexdigest()}


def replace_folder(folder: Path, final: Path) -> None:
    """One rename; with a folder that is there already it changes places. Where a file system cannot do that, the old
    one is put aside until the new one has its name; see `put_back`."""
    old = folder
    if not final.exists():
        os.rename(folder, final)
    elif not final.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file is in its place", str(final))
    elif not exchange(folder, final):
        old = final.with_name(f"{final.name}{ASIDE}{uuid.uuid4().hex}")
        os.rename(final, old)
        try:
            fault_injection.point("between_renames")
            os.rename(folder, final)
        except OSError:
            put_back(final)
            raise
    sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Two folders change places in one step; False where the system or the file system has no such thing."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def put_back(final: Path) -> None:
    """What was put aside for a new one that a crash kept from its place. To be called before `final` is opened."""
    final = Path(os.path.realpath(final))
    if final.exists():
        return
    for old in partials(final.parent, final.name, aside=True):
        with suppress(OSError):  # another process was faster
            os.rename(old, final)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None if there is none or it has been altered."""
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except PermissionError:  # nobody can say that it is damaged
        raise
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return None
    own = manifest.pop("seal", None)
    return manifest if own == seal_of(manifest) else None


def strangers(folder: Path, names: str) -> list[str]:
    """The user's own files in a folder: neither in its manifest nor in the table `names` (own_files.py)."""
    named = (read_manifest(folder) or {}).get("files", {})
    return [path for path in own_files.strangers_by_name(folder, names) if path not in named]


def seal_of(manifest: dict[str, Any]) -> str:
    """sha256 of the content of a manifest, so that changes of the manifest are noticed too."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def damages(folder: Path, hashes: bool = True) -> list[Damage]:
    """The faults of a sealed folder; empty if there are none. Reads every file; without `hashes` only the manifest, and
    the sizes of the others."""
    manifest = read_manifest(folder)
    if manifest is None:
        found = "one that is damaged" if (folder / MANIFEST).is_file() else "none"
        return [Damage(MANIFEST, found, "the one that was written last")]
    wrong: list[Damage] = []
    for name, entry in manifest["files"].items():
        path = folder / name
        if not isinstance(entry, dict) or not contained(folder, name):
            wrong.append(Damage(str(name), "an entry that names no file of this folder", "a path inside it"))
        elif not path.is_file():
            wrong.append(Damage(name, "no such file", f"{entry.get('size')} bytes"))
        elif path.stat().st_size != entry.get("size"):
            wrong.append(Damage(name, f"{path.stat().st_size} bytes", f"{entry.get('size')} bytes"))
        elif hashes and (found := measure(path)["sha256"]) != entry.get("sha256"):
            wrong.append(Damage(name, f"sha256 {found}", f"sha256 {entry.get('sha256')}"))
    return wrong


def contained(folder: Path, name: object) -> bool:
    try:
        return isinstance(name, str) and Path(os.path.realpath(folder / name)).is_relative_to(os.path.realpath(folder))
    except (OSError, ValueError):  # a name that no file can have
        return False


def damages_on_ranks(folder: Path) -> list[Damage]:
    """`damages`, determined by rank 0 and the same on all ranks, so that no rank opens what another found damaged. A
    collective."""
    stop_signals.phase(f"checking the files of {folder.name}")
    return collectives.from_first(damages(folder) if collectives.rank() == 0 else None)


def refuse(folder: Path, wrong: list[Damage], fix: str) -> UserError:
    """The error for a damaged folder; `wrong` is not empty."""
    return UserError(
        f"{folder}: damaged, so it is not opened",
        found="".join(f"\n    - {damage}" for damage in wrong[:10]),
        fix=fix,
    )
