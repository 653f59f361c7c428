"""`ds-rag verify PATH`: is a run, a checkpoint or an index complete? Every file is read and compared with its hash."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ds_rag.index.corpus_check import source_note
from ds_rag.index.store import hash_model
from ds_rag.models.adapters import base_folder
from ds_rag.run import config_and_results, export
from ds_rag.run.checkpoint import LATEST, checkpoints, named_by
from ds_rag.run.metrics_file import read_metrics
from ds_rag.runtime import atomic_folders, json_files, stop_signals
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_json, write_json


@dataclass
class Finding:
    """The result for one part of the folder. wrong: the damage found, empty if it is sound; note: information."""

    part: Path
    kind: str
    wrong: list[str]
    note: str = ""


def main(args: argparse.Namespace) -> int:
    """Runs the command. Returns 0 if everything is sound, else 1."""
    check_json(args.json, ("sound", "parts"))
    path, console = Path(args.path), Console()
    findings = findings_of(path)
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
        console.say(f"--resume auto resumes from {sound[-1]}" if sound else "no checkpoint is left to resume from")
    if any(f.kind in ("run", "file") for f in damaged):
        console.say(json_files.AGAIN)
    if any(f.kind == "base of an adapter" for f in damaged):
        console.say("put the base model back where the adapter names it; the run's own files are not the cause")
    if any(f.kind == "index" for f in damaged):
        console.say("ds-rag index --run RUN builds the index again")
    report = [{"part": str(f.part), "kind": f.kind, "damage": f.wrong, "note": f.note} for f in findings]
    write_json(args.json, {"sound": not damaged, "parts": report})
    return 1 if damaged else 0


def findings_of(path: Path) -> list[Finding]:
    """Verifies every part of a run, or a single checkpoint or index. Raises UserError if there is nothing to verify."""
    for folder in (path, path / "index"):
        atomic_folders.put_back(folder)
    is_run = any((path / name).exists() for name in (json_files.CONFIG, "checkpoints", "retriever"))
    if not is_run and (path / atomic_folders.MANIFEST).is_file():
        return [of_sealed(path)]
    found = of_run(path)
    found += [of_sealed(folder) for folder in checkpoints(path)]
    found += [Finding(f, "unfinished", [], "never finished; not used") for f in leftovers(path)]
    found += of_pointer(path)
    if (path / "index").is_dir():
        found.append(of_index(path))
    if word := stop_signals.last_word(path):
        found.append(
            Finding(path / stop_signals.EXIT_FILE, "word", [], f"stopped at step {word['step']}: {word['reason']}")
        )
    if not found:
        raise UserError(f"{path}: nothing to verify", expected="a run's folder, a checkpoint or an index")
    return found


def of_run(run: Path) -> list[Finding]:
    """Compares a run's exported files with its manifest, and checks that its JSON files can be read."""
    found = []
    for check in (export.settle, json_files.check_kinds):
        try:
            check(run)
        except UserError as error:
            found.append(Finding(run, "run", [first(error)]))
    if found or (run / export.PENDING).is_dir():
        return found  # an export is unfinished, so the files need not belong together
    if (run / atomic_folders.MANIFEST).is_file():
        found.append(of_sealed(run, export.damages_of_export))
    elif export.exported(run):
        wrong = [str(damage) for damage in export.damages_of_export(run)] or of_models(run)
        found.append(
            Finding(run, "run", wrong, "" if wrong else "made before runs had a manifest: there are no hashes to check")
        )
    found += of_bases(run)
    damaged = {line.split(":")[0] for f in found for line in f.wrong}
    readers = {json_files.CONFIG: config_and_results.configuration, json_files.RESULTS: config_and_results.figures}
    for name, read in readers.items():
        if (run / name).exists() and name not in damaged and (wrong := met(read, run)):
            found.append(Finding(run / name, "file", wrong))
    if wrong := met(read_metrics, run / json_files.METRICS):
        found.append(Finding(run / json_files.METRICS, "file", wrong))
    return found


def of_models(run: Path) -> list[str]:
    """Damage that shows without hashes: missing weights, truncated weight files, configuration that is not JSON."""
    wrong = []
    for folder in (run / "retriever", run / "generator"):
        weights = [f for pattern in ("*.safetensors", "*.bin") for f in sorted(folder.glob(pattern))]
        for kind, there in (
            ("weights", weights),
            ("config.json", [f for f in (folder / "config.json", folder / "adapter_config.json") if f.is_file()]),
        ):
            if folder.is_dir() and not there:
                wrong.append(f"{folder.name}: found no {kind}")
        for file in sorted(folder.rglob("*.json")):
            wrong += met(lambda f=file: json_files.read_json(f, object))
        for file in weights:
            if file.suffix == ".safetensors":
                wrong += [f"{file.relative_to(run)}: {text}" for text in met(lambda f=file: safe_open(f, "pt"))]
    return wrong


def of_bases(run: Path) -> list[Finding]:
    """A finding for each adapter of the run whose base model is not where it says, so that it cannot be opened."""
    folders = [(run / name, f"--{name}") for name in ("retriever", "generator") if (run / name).is_dir()]
    wrong = [(folder, met(lambda f=folder, flag=flag: base_folder(f, flag))) for folder, flag in folders]
    return [Finding(folder, "base of an adapter", lines) for folder, lines in wrong if lines]


def met(read: Callable[..., object], *args: Path) -> list[str]:
    """The message of the error that `read` raises; empty if it raises none."""
    try:
        read(*args)
        return []
    except UserError as error:
        return [first(error)]
    except Exception as error:  # safetensors has exceptions of its own
        return [f"{type(error).__name__}: {error}"]


def first(error: UserError) -> str:
    return error.message + (f": found {error.found}" if error.found is not None else "")


def of_pointer(run: Path) -> list[Finding]:
    """A finding about LATEST if it does not name the newest checkpoint."""
    latest, every = run / "checkpoints" / LATEST, checkpoints(run)
    if not latest.is_file() or not every or (name := named_by(latest)) == every[-1].name:
        return []
    note = f"names {name}; the newest is {every[-1].name}, from which a run is resumed"
    return [Finding(latest, "pointer", [], note)]


def of_index(run: Path) -> Finding:
    index, manifest = of_sealed(run / "index"), atomic_folders.read_manifest(run / "index") or {}
    if not index.wrong and (run / "retriever").is_dir():
        with suppress(OSError):  # a retriever that cannot be read is reported as the run's damage
            if manifest.get("model_hash") != hash_model(run / "retriever"):
                index.wrong.append("made by another retriever than RUN/retriever")
    if note := source_note(manifest):
        index.note += f"; {note}"
    return index


def leftovers(run: Path) -> list[Path]:
    parts = (atomic_folders.partials(run, name) for name in ("index", export.PENDING))
    return [*atomic_folders.partials(run / "checkpoints"), *(folder for found in parts for folder in found)]


def of_sealed(folder: Path, damages: Callable[[Path], list[atomic_folders.Damage]] = atomic_folders.damages) -> Finding:
    manifest: dict[str, Any] = atomic_folders.read_manifest(folder) or {}
    kind = str(manifest.get("kind", "checkpoint" if folder.name.startswith("step-") else "index"))
    size = sum(entry.get("size", 0) for entry in manifest.get("files", {}).values() if isinstance(entry, dict))
    note = f"{len(manifest.get('files', {}))} files, {size / 1e6:,.1f} MB"
    return Finding(folder, kind, [str(damage) for damage in damages(folder)], note)
