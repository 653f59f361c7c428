"""FOLDER/build.json: what was run with which command line on which inputs, and how it ended."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import ds_rag
from ds_rag.commands.build.stages import Stage
from ds_rag.runtime import json_files
from ds_rag.runtime.atomic_files import write_complete
from ds_rag.runtime.errors import UserError

FILE = "build.json"
RUNNING, COMPLETE, FAILED, STOPPED = "running", "complete", "failed", "stopped"
BLOCK = 1 << 20  # bytes of a file that are hashed at a time


@dataclass
class Entry:
    """How a stage went. key: a hash of its command line and inputs. flops: those that were predicted of it. before:
    seconds of earlier calls that did not come to its end."""

    command: str
    key: str
    state: str = RUNNING
    exit: int | None = None
    seconds: float = 0.0
    before: float = 0.0
    flops: float = 0.0
    outputs: list[str] = field(default_factory=list)
    at: str = ""


@dataclass
class State:
    """The stages that were begun, by name. `save` after every change."""

    file: Path
    stages: dict[str, Entry] = field(default_factory=dict)

    def is_done(self, stage: Stage, key: str) -> bool:
        """Has it come to its end with this key, and is everything there that it left?"""
        entry = self.stages.get(stage.name)
        if entry is None or entry.key != key or entry.state != COMPLETE:
            return False
        return all(path.exists() for path in stage.outputs)

    def begin(self, stage: Stage, command: str, key: str, flops: float) -> Entry:
        """A new entry for a stage; one that was interrupted keeps its time."""
        last = self.stages.get(stage.name)
        goes_on = last is not None and last.key == key and last.state != COMPLETE
        before = last.before + last.seconds if last is not None and goes_on else 0.0
        entry = Entry(command, key, before=before, flops=flops, outputs=[str(path) for path in stage.outputs])
        entry.at = time.strftime("%Y-%m-%d %H:%M:%S")
        self.stages[stage.name] = entry
        self.save()
        return entry

    def end(self, entry: Entry, code: int, stopped: bool, seconds: float) -> None:
        entry.state = STOPPED if stopped else COMPLETE if code == 0 else FAILED
        entry.exit, entry.seconds = code, round(seconds, 1)
        self.save()

    def save(self) -> None:
        stages = {name: asdict(entry) for name, entry in self.stages.items()}
        content = {json_files.VERSION: ds_rag.__version__, "stages": stages}
        write_complete(self.file, json.dumps(content, indent=1) + "\n")


def read_state(folder: Path) -> State:
    """What build.json says; empty for a new folder. Raises UserError for a folder of something else, or a damaged
    file."""
    file = folder / FILE
    if not file.exists():
        inside = sorted(f.name for f in folder.iterdir() if f.name != "lock") if folder.is_dir() else []
        if inside:
            raise UserError(
                "--out: a folder of something else",
                found=f"{folder}, with {', '.join(inside[:5])}",
                expected="a new or empty folder, or one that ds-rag build made",
            )
        return State(file)
    values = json_files.read_json(file, dict, "delete it: every stage then looks for itself what is there")
    stages = values.get("stages")
    if not isinstance(stages, dict):
        raise UserError(f"{file}: not a build of ds-rag", found=", ".join(values), expected="stages")
    by = values.get(json_files.VERSION)
    return State(file, {name: json_files.record(Entry, entry, file, by) for name, entry in stages.items()})


def key_of(stage: Stage, out: Path) -> str:
    """A hash of the command line and of what it reads. Where the folder lies, and by which path an input is named, does
    not count: its content does."""
    inputs = set(stage.inputs)
    words = [word.replace(str(out), "OUT", 1) if word.startswith(str(out)) else word for word in stage.words]
    words = ["INPUT" if given in inputs else word for given, word in zip(stage.words, words, strict=True)]
    content = [fingerprint(path) for path in stage.inputs]
    return hashlib.sha256(json.dumps([words, stage.ranks, content]).encode()).hexdigest()[:16]


def fingerprint(path: str) -> str:
    """Of a file a hash of its bytes; of a folder, as of a model, the names, sizes and times of its files, since hashing
    gigabytes takes longer than many a stage; of anything else, as a name on a hub, the name."""
    place = Path(path.removeprefix("config:")).expanduser()
    if place.is_file():
        digest = hashlib.sha256()
        with place.open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()
    if place.is_dir():
        files = [f for f in sorted(place.rglob("*")) if f.is_file()]
        facts = [(f.relative_to(place).as_posix(), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return hashlib.sha256(repr(facts).encode()).hexdigest()
    return path
