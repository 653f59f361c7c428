"""What the last call leaves for the next one: of each file its hash, of each document its passages, in a manifest."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ds_rag.data.documents.boilerplate import Units
from ds_rag.runtime import json_files
from ds_rag.runtime.errors import UserError

FORMAT = 1  # of the manifest
RECENT = 2 * 10**9  # nanoseconds: file systems may not tell two changes that are closer than this


class PassageState(NamedTuple):
    hash: str
    place: str
    tokens: int


@dataclass
class DocumentState:
    path: str
    units: Units
    repeated: list[str] = field(default_factory=list)  # keys of its units that were boilerplate, sorted
    passages: list[PassageState] = field(default_factory=list)  # also those that another document has already


@dataclass
class FileState:
    size: int
    mtime_ns: int
    sha256: str
    documents: list[DocumentState] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class State:
    """began: when the call began to read, in nanoseconds. out: size and sha256 of the passages. examples: text of the
    boilerplate, by key."""

    settings: dict[str, Any]
    root: str
    began: int
    out: dict[str, Any] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    files: dict[str, FileState] = field(default_factory=dict)

    def unchanged(self, name: str, size: int, mtime_ns: int, root: str) -> FileState | None:
        """The state of a file whose size and time of change are as they were, long enough before it was read: it need
        not be read. None: its content decides."""
        known = self.files.get(name)
        if known is None or root != self.root or (known.size, known.mtime_ns) != (size, mtime_ns):
            return None
        return known if mtime_ns < self.began - RECENT else None


class Old:
    """The passages of the last call, by their hashes, left in their file."""

    def __init__(self, file: Path):
        self.file = file.open("rb")
        self.offsets: dict[str, int] = {}
        digest, offset = hashlib.sha256(), 0
        for line in self.file:
            digest.update(line)
            with suppress(ValueError, KeyError, TypeError):  # no line of ours: the hash of the file differs too
                self.offsets[json.loads(line)["hash"]] = offset
            offset += len(line)
        self.measure = {"size": offset, "sha256": digest.hexdigest()}

    def title_and_text(self, hash_: str) -> tuple[str, str]:
        self.file.seek(self.offsets[hash_])
        fields = json.loads(self.file.readline())
        return fields["title"], fields["text"]

    def close(self) -> None:
        self.file.close()


def manifest_of(out: Path) -> Path:
    return out.with_name(out.name + ".manifest.json")


def read_state(out: Path, settings: dict[str, Any]) -> tuple[State | None, Old | None, str]:
    """(the last call's state, its passages, ""), or (None, None, why everything is read again); "" at a first call."""
    manifest = manifest_of(out)
    if not manifest.is_file() or not out.is_file():
        return None, None, ""
    try:
        fields = json_files.read_json(manifest, dict)
        if fields.get("format") != FORMAT:
            return None, None, "another version wrote the passages"
        state = as_state(fields)
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return None, None, f"{manifest.name} is damaged"
    if state.settings != settings:
        changed = sorted(k for k in settings.keys() | state.settings.keys() if settings.get(k) != state.settings.get(k))
        return None, None, f"other settings: {', '.join(changed)}"
    old = Old(out)
    if old.measure != state.out:
        old.close()
        return None, None, f"{out.name} was changed, or the last call was interrupted at its end"
    return state, old, ""


def as_text(state: State) -> str:
    return json.dumps({"format": FORMAT} | asdict(state), separators=(",", ":"))


def as_state(fields: dict[str, Any]) -> State:
    def document(d: dict[str, Any]) -> DocumentState:
        units = Units(d["units"]["text"], tuple(d["units"]["keys"]))
        return DocumentState(d["path"], units, d["repeated"], [PassageState(*p) for p in d["passages"]])

    files = {
        name: FileState(f["size"], f["mtime_ns"], f["sha256"], [document(d) for d in f["documents"]], f["notes"])
        for name, f in fields["files"].items()
    }
    return State(fields["settings"], fields["root"], fields["began"], fields["out"], fields["examples"], files)
