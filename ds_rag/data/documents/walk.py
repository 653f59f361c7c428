"""The files of the folders that a user names, by names relative to what they have in common."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ds_rag.data.documents.document import Unreadable
from ds_rag.data.documents.suffixes import KIND_OF, KINDS
from ds_rag.runtime.errors import UserError

PASSED = {"CVS", "__pycache__", "node_modules"}  # folders without documents of the user's, beside hidden ones


@dataclass
class Found:
    root: Path  # the folder that names are relative to
    files: dict[str, Path] = field(default_factory=dict)  # by name, sorted
    unknown: Counter[str] = field(default_factory=Counter)  # suffix -> number of files that no reader knows
    hidden: int = 0  # files and folders, by their names
    links: list[str] = field(default_factory=list)  # symbolic links that lead out of the folders
    unreadable: dict[str, Unreadable] = field(default_factory=dict)  # folders


def find_files(places: Sequence[str | Path], without: Collection[Path] = ()) -> Found:
    """All documents in these files and folders. A file that is named itself is taken whatever its folder is called.

    without: files that are no documents, such as the passages that are about to be written. Raises UserError for a
    place that does not exist.
    """
    given = [Path(place).expanduser() for place in places]
    for path in given:
        if not path.exists():
            nothing = f"nothing there (paths start at {Path.cwd()})"
            raise UserError(f"{path}: does not exist", found=nothing, expected="a file or a folder of documents")
    real = [path.resolve() for path in given]
    root = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in real]))
    found, taken = Found(root), {path.resolve() for path in without}
    for path in real:
        for file in _files_in(path, found, real) if path.is_dir() else [path]:
            if file in taken:
                continue
            taken.add(file)
            suffix = file.suffix.lower()
            if suffix in KIND_OF:
                found.files[name_of(file, root)] = file
            else:
                found.unknown[suffix or "no suffix"] += 1
    found.files = dict(sorted(found.files.items()))
    return found


def _files_in(folder: Path, found: Found, roots: Sequence[Path]) -> Iterator[Path]:
    def refused(error: OSError) -> None:
        name = name_of(Path(error.filename or folder), found.root)
        found.unreadable[name] = Unreadable(f"a folder that cannot be read: {error.strerror}")

    for place, folders, names in os.walk(folder, onerror=refused):
        away = [name for name in (*folders, *names) if name.startswith(".") or name in PASSED]
        found.hidden += len(away)
        links = [name for name in (*folders, *names) if name not in away and os.path.islink(os.path.join(place, name))]
        for name in links:
            target = Path(os.path.realpath(os.path.join(place, name)))
            if not any(target.is_relative_to(root) for root in roots):
                found.links.append(name_of(Path(place) / name, found.root))
        left_out = {*away, *links}
        folders[:] = sorted(name for name in folders if name not in left_out)
        for name in names:
            if name not in left_out and _is_file(os.path.join(place, name)):
                yield Path(place) / name


def _is_file(path: str) -> bool:
    """A pipe would be waited for. A file that has vanished is named when it is read."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return True


def name_of(file: Path, root: Path) -> str:
    """POSIX, relative. Bytes of a name that are not UTF-8 are shown as `\\xff`."""
    return os.fsencode(os.path.relpath(file, root).replace(os.sep, "/")).decode("utf-8", "backslashreplace")


def check_found(found: Found) -> None:
    """Raises UserError where there is nothing to read."""
    if found.files or found.unreadable:
        return
    unknown = ", ".join(f"{count} {suffix}" for suffix, count in found.unknown.most_common(8))
    raise UserError(
        f"{found.root}: no documents",
        found=unknown or ("links and hidden files only" if found.links or found.hidden else "nothing"),
        expected="; ".join(f"{kind} ({', '.join(suffixes)})" for kind, suffixes in KINDS.items()),
    )
