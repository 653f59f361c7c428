"""The state of a corpus's files when they were read, to find out later whether they changed without reading them again.

Size and time of change are compared first; the contents are hashed only where a time differs. A file edited without
changing its size and with its time set back counts as unchanged; `ds-rag verify` hashes all files.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_rag.data.format import with_split
from ds_rag.data.formats import READERS, detect
from ds_rag.data.hub_data import path_of
from ds_rag.runtime.atomic_folders import measure
from ds_rag.runtime.errors import UserError


@dataclass(frozen=True)
class Source:
    """The files that passages are read from. times: name -> (bytes, time of change in ns); "." where `path` is a file.
    kind: their format. path: FOLDER:SPLIT where a split was named."""

    path: Path
    kind: str
    times: dict[str, tuple[int, int]]

    def sealed(self) -> dict[str, Any]:
        """The entry for a manifest, with hashes of the contents. Empty where a file has changed since: then nobody
        knows what was read."""
        try:
            files = {name: measure(place(self.path, name)) for name in self.times}
        except OSError:
            return {}
        if not files or source_of(self.path) != self:
            return {}
        return {
            "kind": self.kind,
            "files": {name: entry | {"time": self.times[name][1]} for name, entry in files.items()},
        }


def source_of(path: str | Path, flag: str = "--corpus") -> Source:
    """To be called before the files are read, so that changes during reading are noticed. `times` is empty where a file
    is not accessible; reading it will raise the error. Raises UserError as `detect` does."""
    folder, split = with_split(path_of(path, flag))
    path = Path(os.path.realpath(folder))
    named = Path(f"{path}:{split}") if split else path
    kind = detect(named, flag)
    try:
        if names := READERS[kind].corpus_files:
            files = [path / name for name in names if (path / name).exists()]
        else:
            files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
        stats = {file.relative_to(path).as_posix(): file.stat() for file in files}
    except OSError:
        stats = {}
    return Source(named, kind, {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()})


def place(path: Path, name: str) -> Path:
    path = with_split(path)[0]
    return path if name == "." else path / name


def unchanged(path: str | Path, sealed: dict[str, Any], read_all: bool = False) -> bool:
    """Are these files the same as in the manifest's entry? False: they were changed, or nobody knows. read_all: hash
    them even where size and time are the same."""
    if not sealed:
        return False
    try:
        now, files = source_of(path), sealed["files"]
        same = now.kind == sealed["kind"] and now.times.keys() == files.keys()
        if not same or any(size != files[name]["size"] for name, (size, _) in now.times.items()):
            return False
        again = [name for name, (_, time) in now.times.items() if read_all or time != files[name]["time"]]
        return all(measure(place(now.path, name))["sha256"] == files[name]["sha256"] for name in again)
    except (OSError, UserError):  # deleted, or of no known format: reading it will raise the error
        return False
