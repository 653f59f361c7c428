"""Reading a run's config.json and results.json. Values that no flag could have set are errors."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import ds_rag
from ds_rag.config import BOUNDS, OWNER, SECTIONS, RunConfig, build
from ds_rag.run.moved_paths import PATHS, absolute_paths
from ds_rag.runtime import json_files
from ds_rag.runtime.errors import UserError


def configuration(run: Path) -> dict[str, Any]:
    """Keys and values of a run's config.json. Raises UserError for keys that this version does not know and values
    that no flag could have set."""
    file = run / json_files.CONFIG
    values = json_files.read_json(file, dict, json_files.AGAIN)
    by = values.pop(json_files.VERSION, None)
    values.pop(PATHS, None)
    json_files.check_known(values, OWNER, file, by)
    for section in SECTIONS.values():
        hints = get_type_hints(section)
        for f in fields(section):
            value, choices = values.get(f.name, f.default), f.metadata["choices"]
            if not json_files.fits(value, hints[f.name]):
                raise json_files.wrong_type(file, f.name, value, hints[f.name], json_files.AGAIN)
            if choices and value not in choices:
                raise UserError(
                    f"{file}: {f.name}: unknown value", found=value, expected=" | ".join(choices), fix=json_files.AGAIN
                )
            if f.name in values and value is not None and (bounds := BOUNDS[f.name]) is not None:
                # An earlier version accepted such a value silently.
                fix = "put a value within these bounds into that file; the models stay as they were trained"
                bounds.check(value, f"{file}: {f.name}", fix)
    try:
        build(values)
    except UserError as error:
        raise UserError(
            f"{file}: {error.message}", found=error.found, expected=error.expected, fix=json_files.AGAIN
        ) from None
    return values


def configuration_text(config: RunConfig) -> str:
    """The text of config.json: the version, every setting, and where the files that they name are."""
    return json.dumps(
        {json_files.VERSION: ds_rag.__version__, **config.flat(), PATHS: absolute_paths(config)}, indent=1
    )


def has_version(run: Path) -> bool:
    """Whether config.json says which version wrote it. Runs from before there were manifests do not."""
    try:
        return json_files.VERSION in json.loads((run / json_files.CONFIG).read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def figures(run: Path) -> dict[str, Any]:
    """The content of results.json; empty if there is no such file. Raises UserError for a value of another type."""
    file = run / json_files.RESULTS
    if not file.exists():
        return {}
    values = json_files.read_json(file, dict, json_files.AGAIN)
    shapes = {"before": dict, "after": dict, "evaluation": dict, "samples": list, "lexical": dict}
    for key, kind in shapes.items():
        if not isinstance(values.get(key), kind | None):
            raise json_files.wrong_type(file, key, values[key], kind, json_files.AGAIN)
    if not all(isinstance(sample, dict) for sample in values.get("samples") or ()):
        raise UserError(f"{file}: samples: wrong type", expected="objects", fix=json_files.AGAIN)
    return values
