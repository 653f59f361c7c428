"""What a corpus's files were when it was read, so that they need not be read again to see that they still are that.

Size and time of change are compared first; the contents are hashed only where a time differs. A file that was edited
with its size kept and its time put back passes for the same; `ds-rag verify` hashes it whatever its time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_rag.data.formats import detect
from ds_rag.runtime.atomic_folders import measure
from ds_rag.runtime.errors import UserError


@dataclass(frozen=True)
class Source:
    """Of the files that the passages are read from: (bytes, time of change in ns) by name, "." for a file by itself.
    kind: how they are read."""

    path: Path
    kind: str
    times: dict[str, tuple[int, int]]

    def sealed(self) -> dict[str, Any]:
        """For a manifest: the same with the contents' hashes. Empty where a file has changed since, for what was read
        cannot be told any more."""
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
    """To be called before the files are read: what changes meanwhile then shows. No times where a file cannot be looked
    at, which whoever reads it will tell. Raises UserError as `detect` does."""
    path = Path(os.path.realpath(Path(path).expanduser()))
    kind = detect(path, flag)
    try:
        if kind == "beir":
            files = [path / "corpus.jsonl"]
        else:
            files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
        stats = {file.relative_to(path).as_posix(): file.stat() for file in files}
    except OSError:
        stats = {}
    return Source(path, kind, {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()})


def place(path: Path, name: str) -> Path:
    return path if name == "." else path / name


def unchanged(path: str | Path, sealed: dict[str, Any], read_all: bool = False) -> bool:
    """Do these files hold what those of the manifest's entry did? No: they were changed, or nobody knows. read_all:
    hashed even where size and time are as they were."""
    if not sealed:
        return False
    try:
        now, files = source_of(path), sealed["files"]
        same = now.kind == sealed["kind"] and now.times.keys() == files.keys()
        if not same or any(size != files[name]["size"] for name, (size, _) in now.times.items()):
            return False
        again = [name for name, (_, time) in now.times.items() if read_all or time != files[name]["time"]]
        return all(measure(place(now.path, name))["sha256"] == files[name]["sha256"] for name in again)
    except (OSError, UserError):  # gone, or of no known kind: whoever reads it will say so
        return False
