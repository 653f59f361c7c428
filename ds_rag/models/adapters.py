"""Low-rank adapters (LoRA: Hu et al. 2021, arXiv:2106.09685) through peft, and loading frozen weights in 4 bits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ds_rag.config import ModelConfig
from ds_rag.models.folder_safety import COPY_AGAIN
from ds_rag.models.hub_models import base_name, cached_model
from ds_rag.models.size import stored_bytes
from ds_rag.models.weights import named, stored_name
from ds_rag.runtime import json_files
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.hub import name_of_snapshot

ADAPTER_FILE = "adapter_config.json"
# What peft adds to the name of a weight, in a model and in a file: pattern -> replacement.
WITHIN = {r"^base_model\.model\.": "", r"\.default(?=\.|$)": ""}


@contextmanager
def quiet() -> Iterator[None]:
    """peft's use of what transformers is about to rename is no concern of the user's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def wanted_by(choice: str, name: str) -> bool:
    """Does the value of a flag (none, retriever, generator, both) include this model?"""
    return choice in (name, "both")


def add_adapters(model: Any, config: ModelConfig, base: Path) -> None:
    """Adds adapters to the linear layers, except the head, in place, and freezes all other parameters. base: the folder
    of the weights; a saved adapter names it, or, where it is in the hub's cache, its name and revision."""
    from peft import LoraConfig

    target: Any = [t.strip() for t in config.lora_target_modules.split(",")]
    settings = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear" if target == ["all-linear"] else target,
        exclude_modules=r".*pooler.*",  # the output of a pooler is not used, so its adapters would get no gradient
    )
    try:
        with quiet():
            model.add_adapter(settings)
    except ValueError as error:
        raise UserError(
            f"--lora_target_modules {config.lora_target_modules}: no such layers",
            found=str(error).splitlines()[0],
            expected="all-linear, or names of the model's linear layers, separated by commas",
        ) from None
    on_hub = name_of_snapshot(base)
    settings.base_model_name_or_path, settings.revision = on_hub or (str(base.resolve()), None)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def has_adapters(module: nn.Module) -> bool:
    return any("lora_" in name for name, _ in module.named_parameters())


def base_folder(folder: Path, flag: str) -> Path:
    """The folder with the full weights: `folder` itself, or the base model that its adapter names: a folder, or a name
    on the hub that its cache has. Nothing is fetched for a name that the user has not given."""
    if not (folder / ADAPTER_FILE).is_file():
        return folder
    file = folder / ADAPTER_FILE
    named = json_files.read_json(file, dict, COPY_AGAIN).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise UserError(f"{file}: names no base", found=repr(named), expected="base_model_name_or_path", fix=COPY_AGAIN)
    base, fix = Path(named), "put it back, or correct the path"
    if name := base_name(folder):
        cached, fix = cached_model(name, flag), f"hf download {name.repo} --revision {name.revision or 'main'}"
        base = cached[1] if cached else base
    lacking = "config.json" if not (base / "config.json").is_file() else "" if stored_bytes(base) else "weights"
    if lacking:
        raise UserError(
            f"{flag} {folder}: an adapter whose base is not there",
            found=f"no {lacking} in {base}" + (f", and {name} is not in the hub's cache" if name else ""),
            expected=f"the model that {ADAPTER_FILE} names as base_model_name_or_path",
            fix=fix,
        )
    if (base / ADAPTER_FILE).is_file():  # from_pretrained would look for that one's base, on the hub too
        raise UserError(
            f"{flag} {folder}: an adapter whose base is itself an adapter",
            found=f"{ADAPTER_FILE} in {base}",
            expected="whole weights",
            fix="merge that one first",
        )
    return base


def apply_adapters(model: Any, folder: Path, merge: bool) -> Any:
    """`model` with the adapter of `folder`, if it holds one: merged into the weights, or kept separate as in training
    (weights in 4 bits would round the sum once more)."""
    if not (folder / ADAPTER_FILE).is_file():
        return model
    if not merge:
        with quiet():
            model.load_adapter(str(folder))
        check_adapter(model, folder)
        return model
    from peft import PeftModel

    with quiet():
        merged: Any = PeftModel.from_pretrained(model, str(folder))
    check_adapter(merged, folder)
    return merged.merge_and_unload()


def check_adapter(model: Any, folder: Path) -> None:
    """Raises UserError unless the stored weights of the adapter are exactly those that the model has: peft would
    initialise missing ones as adapters that do nothing."""
    from peft.utils import load_peft_weights

    own = {stored_name(name, WITHIN) for name, _ in model.named_parameters() if "lora_" in name}
    stored = {stored_name(name, WITHIN) for name in load_peft_weights(str(folder), device="cpu") if "lora_" in name}
    if own != stored:
        absent, left = sorted(own - stored), sorted(stored - own)
        raise UserError(
            f"{folder}: not the weights of its base's adapter",
            found="; ".join(filter(None, (named(absent, "not there"), named(left, "not used")))),
            expected=f"the layers that {ADAPTER_FILE} names, of the base that it names",
            fix="copy the adapter again, or correct base_model_name_or_path",
        )


def four_bit(config: ModelConfig, name: str) -> dict[str, Any]:
    """Arguments of from_pretrained for weights in 4 bits (NF4 of QLoRA: Dettmers et al. 2023, arXiv:2305.14314), if the
    flags ask for them; else empty."""
    if not wanted_by(config.load_in_4bit, name):
        return {}
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--load_in_4bit {config.load_in_4bit}: bitsandbytes does not load",
            found=error,
            fix='in the checkout: pip install -e ".[quantized]"',
        ) from None
    from transformers import BitsAndBytesConfig

    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        )
    }
