"""Opens the JSON files of a run's folder. All errors are of one kind, which says which file, what was found and what to
do; keys of a newer version are reported as such.

Also used for small files of models (settings, adapters), and for the manifests of checkpoints and indexes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import ds_rag
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.own_files import FOLDERS

CONFIG, RESULTS, METRICS = "config.json", "results.json", "metrics.jsonl"
VERSION = "ds_rag"  # key: the version that wrote the file
AGAIN = "the training's own command with --resume auto leaves models, figures and configuration again"
FILES = [CONFIG, RESULTS, METRICS, "manifest.json", "report.html", "exit.json", "STOP", "lock", "run.log"]
FILES += ["checkpoints/LATEST"]
FILES += [f"{when}.{kind}" for when in ("before", "after") for kind in ("questions.parquet", "trec")]
Record = TypeVar("Record")


def check_kinds(run: Path) -> None:
    """Raises UserError where there is a folder in place of a file, or the reverse."""
    for names, is_kind, kind in ((FOLDERS, Path.is_dir, "a folder"), (FILES, Path.is_file, "a file")):
        for name in names:
            path = run / name
            if path.exists() and not is_kind(path):
                found = "a folder" if path.is_dir() else "a file" if path.is_file() else "neither file nor folder"
                raise UserError(f"{path}: not {kind}", found=found, expected=kind, fix="put it elsewhere")


def read_text(file: Path, fix: str | None = None) -> str:
    """The text of a file. Raises UserError for a file that does not exist, cannot be read, or is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at offset {error.start}"
        raise UserError(f"{file}: not UTF-8", found=found, expected="text as it was written", fix=fix) from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read", found=error.strerror, fix=fix) from None


def read_json(file: Path, kind: type[Record], fix: str | None = None) -> Record:
    """The content of a JSON file. Raises UserError if it is not JSON, or not a `kind` (dict, list)."""
    text = read_text(file, fix)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "cut short, or changed" if text.strip() else "empty"
        raise UserError(f"{file}: {what}", found=f"no JSON: {error}", expected=name_of(kind), fix=fix) from None
    if not isinstance(value, kind):
        raise UserError(f"{file}: not {name_of(kind)}", found=f"{type(value).__name__}", fix=fix)
    return value


def name_of(kind: type) -> str:
    names: dict[type, str] = {dict: "a JSON object", list: "a JSON array"}
    return names.get(kind, kind.__name__)


def record(
    cls: Callable[..., Record], values: dict[str, Any], file: Path, by: object, fix: str | None = None
) -> Record:
    """The dataclass `cls` made from the values in a file. by: the version that wrote it, if known. Raises UserError for
    keys that are not its fields, values of another type, and missing keys without a default."""
    every = fields(cls)  # type: ignore[arg-type]
    check_known(values, [f.name for f in every], file, by)
    hints = get_type_hints(cls)
    for f in every:
        if f.name not in values:
            if f.default is MISSING and f.default_factory is MISSING:
                raise UserError(f"{file}: no {f.name}", found=", ".join(values) or "nothing", fix=fix)
        elif not fits(values[f.name], hints[f.name]):
            raise wrong_type(file, f.name, values[f.name], hints[f.name], fix)
    return cls(**values)


def check_known(values: dict[str, Any], known: Collection[str], file: Path, by: object) -> None:
    """Raises UserError for unknown keys: they would be ignored."""
    unknown = sorted(set(values) - set(known))
    if not unknown:
        return
    here, newer = ds_rag.__version__, is_newer(by)
    raise UserError(
        f"{file}: written by a newer version of ds_rag, {by}" if newer else f"{file}: keys that are not known",
        found=", ".join(unknown[:10]),
        expected=f"what ds_rag {here} knows",
        fix=f"ds_rag {by}" if newer else "the version of ds_rag that wrote it; what was added by hand goes",
    )


def version_in(facts: dict[str, Any]) -> object:
    """The version that wrote a checkpoint, from its manifest; None if it is not given."""
    versions = facts.get("versions")
    return versions.get("ds_rag") if isinstance(versions, dict) else None


def is_newer(version: object) -> bool:
    """Is this version newer than the running one?"""

    def parts(text: object) -> list[int]:
        return [int(p) for p in str(text).split("+")[0].split(".") if p.isdigit()]

    return parts(version) > parts(ds_rag.__version__)


def fits(value: object, hint: Any) -> bool:
    """Does a value from JSON have this type? A whole number is a float too; true is not a number."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in get_args(hint))
    kind = origin or hint
    if kind is Any:
        return True
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return value is None if kind in (None, NoneType) else isinstance(value, kind)


def wrong_type(file: Path, key: str, value: object, hint: Any, fix: str | None) -> UserError:
    name = hint.__name__ if isinstance(hint, type) else str(hint)
    return UserError(f"{file}: {key}: wrong type", found=repr(value)[:100], expected=name, fix=fix)
