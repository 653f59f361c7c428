"""Loads all weights of a folder, or raises an error: missing weights would silently be random.

transformers reports the weights of a model that it did not find (and initialised at random), those in the files that it
did not use, and those of another shape. Here a missing weight is an error, unless nothing uses it (a pooler). Names
with a prefix, as torch.compile, DDP and Lightning save them, are read without the prefix.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ds_rag.models.sharded import forget_renamings
from ds_rag.runtime import collectives
from ds_rag.runtime.errors import UserError

# Prefixes of names of weights: pattern -> replacement.
WRAPPED = {r"((?:^|\.))(?:(?:module|_orig_mod)\.)+": r"\1"}
UNREAD = re.compile(r"(^|\.)pooler\.")  # a module whose output is not used here
# Tables that older versions stored and today's models compute.
COMPUTED = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|attn\.bias|attention\.bias)$")
SHOWN = 3
Open = Callable[..., Any]  # from_pretrained of transformers, with all other arguments bound


def open_all(load: Open, folder: Path, what: str, pieces: bool) -> Any:
    """The model of `folder`, with every weight that it uses. load: from_pretrained, called with keywords.

    what: flag and folder, for messages. pieces: the model is loaded at ZeRO stage 3; then to be called on all ranks.
    Raises UserError where weights are missing, have other shapes, or belong to modules that the configuration of the
    model does not have.
    """
    model, report = try_loading(load, what, pieces)
    absent = missing(report)
    if absent and (mapping := renaming(model, absent, stored_names(folder), pieces)):
        del model
        model, report = try_loading(load, what, pieces, key_mapping=mapping)
        forget_renamings(model)  # otherwise saving would restore the wrapper's names
        absent = missing(report)
    left = unread(model, report["unexpected_keys"])
    if absent or left:
        raise UserError(
            f"{what}: the weights in the folder are not those of its configuration",
            found="; ".join(filter(None, (named(absent, "not there"), named(left, "for parts that it does not have")))),
            expected=f"all weights of {type(model).__name__} as its config.json describes it",
            fix="copy the folder again, or correct config.json (architectures, number of layers, "
            "tie_word_embeddings); nothing is filled in at random",
        )
    return model


def try_loading(load: Open, what: str, pieces: bool, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model and the report of transformers. Raises UserError for a weight of another shape; on all ranks if the
    model is loaded sharded, since only rank 0 reads the files then."""
    model, report, wrong = None, {}, None
    try:
        model, report = load(output_loading_info=True, **options)
        wrong = "; ".join(report.get("error_msgs") or ()) or None
    except RuntimeError as error:
        if not re.search("mismatch|conversion of the weights", str(error)):
            raise
        wrong = shapes(load, options) if not pieces else " ".join(str(error).split("\tYou may")[0].split())
    if pieces:
        wrong = next(filter(None, collectives.gather_objects(wrong)), None)
    if wrong:
        raise UserError(
            f"{what}: weights of another shape than its configuration says",
            found=wrong,
            expected="files and config.json of one model",
            fix="copy the folder again",
        )
    return model, report


def shapes(load: Open, options: dict[str, Any]) -> str | None:
    """A message with the weights of another shape and their number; None where there are none."""
    _, report = load(output_loading_info=True, ignore_mismatched_sizes=True, **options)
    wrong = sorted((name, tuple(stored), tuple(own)) for name, stored, own in report["mismatched_keys"])
    return named([f"{name} {stored} instead of {own}" for name, stored, own in wrong], "of another shape")


def missing(report: dict[str, Any]) -> list[str]:
    return sorted(name for name in report["missing_keys"] if not UNREAD.search(name))


def unread(model: Any, names: Iterable[str]) -> list[str]:
    """Those of `names` that belong to modules of this model. The head of another task does not."""
    parts = {name for name, _ in model.named_children()} - {"pooler"}
    prefix = f"{model.base_model_prefix}."
    inside = (n for n in names if {n.split(".")[0], n.removeprefix(prefix).split(".")[0]} & parts)
    return sorted(n for n in inside if not COMPUTED.search(n) and not UNREAD.search(n))


def renaming(model: Any, absent: Iterable[str], stored: set[str], pieces: bool) -> dict[str, str] | None:
    """How to rename the weights in the files: the pattern that finds most of the absent weights; None if no pattern
    finds any."""
    prefix = model.base_model_prefix
    choices = [WRAPPED]
    for first in filter(None, (prefix, "model", f"model.{prefix}" if prefix else None, "auto_model", "0.auto_model")):
        choices.append({rf"^(?:(?:module|_orig_mod)\.)*{re.escape(first)}\.": ""})
    # transformers itself adds the prefix of the base model to a name, and removes it unless it loads sharded
    wanted = set(absent) | {name.removeprefix(f"{prefix}.") for name in absent}
    found = []
    for choice in choices:
        names = {stored_name(name, choice) for name in stored}
        names |= set() if pieces else {name.removeprefix(f"{prefix}.") for name in names}
        found.append(len(wanted & names))
    best = max(found)
    return choices[found.index(best)] if best else None


def stored_name(name: str, mapping: dict[str, str]) -> str:
    for pattern, rest in mapping.items():
        name = re.sub(pattern, rest, name)
    return name


def stored_names(folder: Path) -> set[str]:
    """The names of the weights in a folder's files, without reading the weights."""
    for index in sorted(folder.glob("*.index.json")):
        return set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}))
    names: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        from safetensors import safe_open

        with safe_open(file, framework="pt") as content:
            names |= set(content.keys())
    if not names:
        for file in sorted(folder.glob("pytorch_model*.bin")):
            names |= set(torch.load(file, map_location="meta", weights_only=True))
    return names


def named(names: list[str], what: str) -> str | None:
    """A message with the number of names and the first of them; None where there are none."""
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}" if names else None
