"""`ds-rag verify PATH`: is a run, a checkpoint or an index whole? Every file is read and held against its hash."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_rag import commit, stopping
from ds_rag.checkpoint import LATEST, checkpoints
from ds_rag.errors import UserError
from ds_rag.index.store import hash_model
from ds_rag.log import Console
from ds_rag.same_corpus import source_note
from ds_rag.saved import write_json


@dataclass
class Finding:
    """One part of what was looked at; wrong: nothing where it is sound. note: worth knowing, no damage."""

    part: Path
    kind: str
    wrong: list[str]
    note: str = ""


def main(args: argparse.Namespace) -> int:
    """The command; its flags are in cli.py. Returns 0 where all is sound, else 1."""
    path, console = Path(args.path), Console()
    findings = look(path)
    rows = [
        [str(f.part.relative_to(path)) if f.part != path else ".", f.kind, "damaged" if f.wrong else "sound", f.note]
        for f in findings
    ]
    console.table(str(path), ["part", "kind", "state", "note"], rows)
    damaged = [f for f in findings if f.wrong]
    for finding in damaged:
        for line in finding.wrong:
            console.say(f"{finding.part}: {line}", style="red")
    if any(f.kind == "checkpoint" for f in damaged):
        sound = [f.part.name for f in findings if f.kind == "checkpoint" and not f.wrong]
        console.say(f"--resume auto goes on from {sound[-1]}" if sound else "no checkpoint is left to go on from")
    if any(f.kind == "index" for f in damaged):
        console.say("ds-rag index --run RUN makes the index again")
    report = [{"part": str(f.part), "kind": f.kind, "damage": f.wrong, "note": f.note} for f in findings]
    write_json(args.json, {"sound": not damaged, "parts": report})
    return 1 if damaged else 0


def look(path: Path) -> list[Finding]:
    """Raises UserError where there is nothing to verify."""
    for folder in (path, path / "index"):
        commit.put_back(folder)
    if commit.read_manifest(path) is not None or (path / commit.MANIFEST).is_file():
        return [of_sealed(path)]
    found = [of_sealed(folder) for folder in checkpoints(path)]
    found += [Finding(f, "unfinished", [], "never finished; not used") for f in leftovers(path)]
    if (latest := path / "checkpoints" / LATEST).is_file() and checkpoints(path):
        name, newest = latest.read_text().strip(), checkpoints(path)[-1].name
        if name != newest:
            note = f"names {name}; the newest is {newest}, which is what is resumed from"
            found.append(Finding(latest, "pointer", [], note))
    if (path / "index").is_dir():
        index = of_sealed(path / "index")
        made_by = (commit.read_manifest(path / "index") or {}).get("model_hash")
        if not index.wrong and (path / "retriever").is_dir() and made_by != hash_model(path / "retriever"):
            index.wrong.append("made by another retriever than RUN/retriever")
        index.note += f"; {note}" if (note := source_note(commit.read_manifest(path / "index") or {})) else ""
        found.append(index)
    if word := stopping.last_word(path):
        found.append(
            Finding(path / stopping.EXIT_FILE, "word", [], f"stopped at step {word['step']}: {word['reason']}")
        )
    if not found:
        raise UserError(f"{path}: nothing to verify", expected="a run's folder, a checkpoint or an index")
    return found


def leftovers(run: Path) -> list[Path]:
    return [*commit.partials(run / "checkpoints"), *commit.partials(run, "index")]


def of_sealed(folder: Path) -> Finding:
    manifest: dict[str, Any] = commit.read_manifest(folder) or {}
    kind = str(manifest.get("kind", "checkpoint" if folder.name.startswith("step-") else "index"))
    size = sum(entry.get("size", 0) for entry in manifest.get("files", {}).values() if isinstance(entry, dict))
    note = f"{len(manifest.get('files', {}))} files, {size / 1e6:,.1f} MB"
    return Finding(folder, kind, [str(damage) for damage in commit.damages(folder)], note)
