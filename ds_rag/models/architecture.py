"""Checks the kind of a model by its configuration, before any weight is read or any module built.

It is not enough that transformers can build the class. It builds a causal LM from a masked LM, whose tokens then attend
to later ones, and from an encoder-decoder, whose encoder is then left out. Either could be trained, with meaningless
metrics.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds_rag.models.folder_safety import opening, out_of_reach
from ds_rag.models.size import check_least, stored_bytes
from ds_rag.runtime.errors import UserError

# Implementations of attention and experts in torch and transformers; any other name is downloaded.
BUILT_IN = ("eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")
INSTALLED = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_3"}  # else downloaded
# Kinds of quantised weights whose kernels transformers downloads from the hub.
FETCHING = ("mxfp4", "nvfp4", "fp8", "fbgemm_fp8", "gguf", "metal", "sinq")
# Types whose positions begin after the id of the padding token, so that many rows of the table are unusable.
AFTER_PADDING = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}


def read_config(folder: Path, what: str, trusted: bool) -> Any:
    """The folder's configuration, after checking that it makes transformers download no code and exhaust no memory.
    Raises UserError."""
    from transformers import AutoConfig

    check_folder(folder, what, trusted)
    with opening(what), out_of_reach(trusted):
        return AutoConfig.from_pretrained(folder, trust_remote_code=trusted)


def check_folder(folder: Path, what: str, trusted: bool) -> None:
    """Raises UserError where a configuration of the folder names an implementation that would be downloaded, unless
    --trust_remote_code is given, or sizes that its weights cannot fill."""
    with opening(what):  # the JSON may be nested too deeply to walk
        check_least(readable(folder / "config.json"), what, stored_bytes(folder))
        for file in () if trusted else sorted(folder.glob("*config*.json")):
            check_entries(readable(file), file.name, what)


def check_entries(config: Any, name: str, what: str) -> None:
    """Raises UserError where the content of one file names code to download."""
    for key, value in entries(config):
        if (key.endswith("_implementation") and not at_hand(value)) or (key == "quant_method" and value in FETCHING):
            raise UserError(
                f"{what}: {name} names code that would be fetched and run",
                found=f"{key}: {value}",
                expected=f"one of {', '.join(BUILT_IN)}, or what is installed ({', '.join(INSTALLED)})",
                fix=f"take {key} out of {name}; if you trust that code, --trust_remote_code",
            )


def readable(file: Path) -> Any:
    """The content of a JSON file; {} where it is not JSON: opening the model will raise that error."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def at_hand(name: Any) -> bool:
    """Can an implementation of this name be used without downloading anything?"""
    if name in INSTALLED:
        return importlib.util.find_spec(INSTALLED[name]) is not None
    return name is None or name in BUILT_IN


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of every plain value at any depth. Values nested in an `..._implementation` are yielded under that
    key (transformers accepts a dictionary there, with one name for each part of the model)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if str(key).endswith("_implementation") and isinstance(inner, dict):
                yield from ((key, name) for _, name in entries(inner))
            elif isinstance(inner, (dict, list)):
                yield from entries(inner)
            else:
                yield str(key), inner
    elif isinstance(value, list):
        for inner in value:
            yield from entries(inner)


def check_causal(config: Any, what: str, trusted: bool = False) -> None:
    """Raises UserError unless this is the configuration of a causal LM."""
    from transformers.models.auto import modeling_auto as auto

    causal, masked = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    kind = config.model_type
    if trusted and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    one_way = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    made_as = [name for name in getattr(config, "architectures", None) or [] if "For" in name or "LMHead" in name]
    why = None
    if getattr(config, "is_encoder_decoder", False):
        why = "an encoder-decoder, whose encoder a causal LM would leave out"
    elif kind not in causal:
        why = "there is no causal LM of this type"
    elif kind in masked and not one_way:
        why = "a masked LM: each of its tokens sees those after it"
    elif getattr(config, "add_cross_attention", False):
        why = "a decoder that reads an encoder's output, of which there is none here"
    elif made_as and not any(name in causal.values() for name in made_as):
        why = f"its weights are those of {', '.join(made_as)}"
    if why:
        raise UserError(
            f"{what}: not a causal LM",
            found=f"model_type {kind}: {why}",
            expected="a model that writes from left to right: GPT-2, Llama, Qwen, Gemma, Mistral and their kind",
        )


def check_encoder(config: Any, what: str) -> None:
    """Raises UserError where this is certainly not the configuration of a text encoder. Whether the model gives a state
    for every token is tested on the model itself (behaviour_checks.py)."""

    kind = config.model_type
    why = None
    if getattr(config, "is_encoder_decoder", False) and not is_half_of_two(config):
        why = "an encoder-decoder of which transformers has no encoder alone (it has of T5 and its kind)"
    elif not hasattr(config, "hidden_size"):
        why = "several models in one, or none of texts: its configuration has no hidden_size"
    elif kind == "dpr":
        why = "DPR's encoders give one vector a text and no states of its tokens"
    if why:
        raise UserError(
            f"{what}: not a text encoder",
            found=f"model_type {kind}: {why}",
            expected="an encoder or decoder with a state for every token: BERT, MPNet, T5's encoder, Qwen ...",
        )


def is_half_of_two(config: Any) -> bool:
    """Is this the type of an encoder-decoder, such as T5, for which transformers also has the encoder alone? The folder
    of such an encoder says that it is not an encoder-decoder."""
    from transformers.models.auto import modeling_auto as auto

    alone, both = auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    return config.model_type in alone and config.model_type in both


def check_pad(config: Any, what: str) -> None:
    """Raises UserError unless the model has an embedding for the padding token of its configuration."""
    config = config.get_text_config()
    pad, rows = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if isinstance(pad, int) and isinstance(rows, int) and pad >= rows:
        raise UserError(
            f"{what}: a padding token that the model has no embedding for",
            found=f"pad_token_id {pad}, vocab_size {rows}",
            expected=f"an id below {rows}",
            fix="correct it in config.json",
        )


def usable_positions(config: Any) -> int | None:
    """The number of tokens that a text may have by the model's positions; None: no limit."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    rows = getattr(config, "max_position_embeddings", None)
    if not rows or rows < 0:  # XLNet's -1
        return None
    if config.model_type in AFTER_PADDING and getattr(config, "position_embedding_type", None) != "rotary":
        return int(rows) - int(config.pad_token_id or 0) - 1
    return int(rows)
