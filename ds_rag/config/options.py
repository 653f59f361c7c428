"""`option` declares a setting: a field that is also a flag and a key of a recipe."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from ds_rag.config.bounds import Bounds

# May a resumed run change a setting? Each setting declares one of these words; run/resume_rules.py checks them.
FIXED = "fixed"  # no: a value other than the checkpoint's is an error, unless --resume_changed is set
FREE = "free"  # yes: where and how often files are written, how much is computed at once, what is only measured
LENGTH = "length"  # yes, with a note: the learning-rate schedule depends on it
INDEX = "index"  # the kind of index and when it is built: fixed only if candidates come from the index


def option(
    on_resume: str,
    default: Any,
    text: str,
    choices: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    bounds: Bounds | None = None,
) -> Any:
    """A field that is also a flag.

    on_resume: one of the four words above. text: the flag's help. choices: the allowed values, if it is a closed set.
    aliases: other names of the flag. bounds: of a number; every number must have bounds.
    """
    said = {"help": text, "choices": choices, "aliases": aliases, "bounds": bounds, "on_resume": on_resume}
    return field(default=default, metadata=said)
