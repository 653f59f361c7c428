"""Checks by the manifest, before any search, that an index can be searched with the queries of a retriever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_rag.index.back_ends import METRIC
from ds_rag.runtime.errors import UserError


def check_compatible(folder: Path, manifest: Any, retriever: Any) -> None:
    """retriever: embeds the queries (`hidden_size`, `settings`). Raises UserError if dimension, metric, normalisation
    or pooling differ: scores would be meaningless, whatever the weights."""
    settings = retriever.settings
    pairs = {
        "dimension": (manifest.dimension, retriever.hidden_size),
        "metric": (manifest.metric, METRIC),
        "normalize": (manifest.normalize, settings.normalize),
        "pooling": (manifest.pooling, settings.pooling),
    }
    wrong = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if wrong:
        raise UserError(
            f"{folder}: the index does not fit the retriever",
            found=", ".join(f"{name} {stored}" for name, (stored, _) in wrong.items()),
            expected=", ".join(f"{name} {own}" for name, (_, own) in wrong.items()),
            fix=advice(set(wrong)),
        )


def advice(wrong: set[str]) -> str:
    """How to fix it. Never recommends a flag that changes the vectors of a trained model."""
    flags = [f"--{name}" for name in ("pooling", "normalize") if name in wrong]
    if len(flags) == len(wrong):
        return f"leave {' and '.join(flags)} out; where none was given, ds-rag index --run RUN"
    return "ds-rag index --run RUN"


def check_parts(folder: Path, manifest: Any, parts: list[Any]) -> None:
    """The same check for the files of the index's back end. Raises UserError."""
    for part in parts:
        found = part.index.dimension, part.index.metric
        if found != (manifest.dimension, METRIC):
            raise UserError(
                f"{folder}: the index file is not the one that the manifest describes",
                found=f"dimension {found[0]}, {found[1]}",
                expected=f"dimension {manifest.dimension}, {METRIC}",
                fix="ds-rag index --run RUN",
            )
