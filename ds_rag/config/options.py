"""How a setting is declared: a field that is also a flag and a key of a recipe."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from ds_rag.config.bounds import Bounds

# What a resumed run may do with a setting. Each setting says one of these; run/resume_rules.py acts on it.
FIXED = "fixed"  # another value than the checkpoint's is refused, unless --resume_changed is set
FREE = "free"  # may change: where and how often things are written, how much is done at once, what is only measured
LENGTH = "length"  # may change, and is said: the learning rate follows it
INDEX = "index"  # what an index is and when it is made: fixed only where rows take their candidates from it


def option(
    on_resume: str,
    default: Any,
    text: str,
    choices: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    bounds: Bounds | None = None,
) -> Any:
    """A field that is also a flag: `text` is its help, `choices` its closed set of values, `bounds` those of a number
    (every number has some), `on_resume` one of the four words above."""
    said = {"help": text, "choices": choices, "aliases": aliases, "bounds": bounds, "on_resume": on_resume}
    return field(default=default, metadata=said)
