"""The size of a model by its configuration, checked before anything is allocated.

First by arithmetic on the configuration, then by building the model without memory (torch's meta device).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from ds_rag.runtime.errors import UserError

BYTES_OF_A_LAYER = 100_000  # minimum of Python objects, however narrow the layer
BYTES_OF_A_LABEL = 200
NEW, STORED = 4.0, 0.25  # bytes of a weight: float32; the strongest quantisation
HARMLESS = 1e9  # weights that any machine has memory for: truncated files have an error of their own


def stored_bytes(folder: Path) -> int:
    """Bytes of the weights in a folder; 0 where it has no file of weights."""
    return sum(f.stat().st_size for pattern in ("*.safetensors", "*.bin") for f in folder.glob(pattern))


def check_least(config: Any, what: str, held: int) -> None:
    """Raises UserError unless a model can have this size. held: bytes of its files, 0 for a new model."""
    if not isinstance(config, dict):
        return
    weights, objects = least_weights(config), least_objects(config)
    compare(weights, objects, what, held)
    inner = config.get("text_config")
    if isinstance(inner, dict):
        check_least(inner, what, held)


def check_counted(build: Callable[[], Any], what: str, held: int) -> None:
    """The same check, by counting all weights of the model that `build` makes. A model that cannot be built without
    memory (its code needs values) is checked by arithmetic only. Raises UserError."""
    try:
        with torch.device("meta"):
            model = build()
    except Exception:  # whatever such code raises: building the model later will raise it
        return
    compare(sum(p.numel() for p in model.parameters()), 0, what, held)


def compare(weights: float, objects: float, what: str, held: int) -> None:
    room = psutil.virtual_memory().total
    if held and weights > HARMLESS and STORED * weights > held:
        raise UserError(
            f"{what}: a configuration larger than the weights beside it",
            found=f"{weights:.3g} weights by config.json, {held:.3g} bytes in the files",
            expected="files and config.json of one model",
            fix="correct the sizes in config.json, or copy the folder again",
        )
    wanted = objects if held else objects + NEW * weights
    if wanted > room:
        raise UserError(
            f"{what}: a model larger than this machine",
            found=f"{wanted / 1e9:.3g} GB at the least, by its configuration",
            expected=f"at most the {room / 1e9:.3g} GB of this machine's memory",
            fix="correct the sizes in the configuration",
        )


def least_weights(config: dict[str, Any]) -> float:
    """The least number of weights in any model with these sizes, whatever its family: the embedding, and for each layer
    two matrices of its attention and two of its MLP."""
    width = size(config, "hidden_size", "n_embd", "d_model", "dim")
    inner = size(config, "intermediate_size", "ffn_dim", "n_inner", "d_ff", "hidden_dim")
    heads = size(config, "num_attention_heads", "n_head", "n_heads", "num_heads")
    head = size(config, "head_dim", "d_kv") or (width / heads if heads else 0)
    layers = 1 if config.get("model_type") == "albert" else layer_count(config)  # ALBERT's layers share their weights
    table = size(config, "vocab_size") * (size(config, "embedding_size", "word_embed_proj_dim") or width)
    return table + layers * (2 * width * heads * head + 2 * width * inner)


def least_objects(config: dict[str, Any]) -> float:
    """The least bytes of Python objects that a model and its configuration take."""
    return BYTES_OF_A_LAYER * layer_count(config) + BYTES_OF_A_LABEL * size(config, "num_labels")


def layer_count(config: dict[str, Any]) -> float:
    return size(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")


def size(config: dict[str, Any], *names: str) -> float:
    """The value of the first of these keys that is a number; else 0."""
    found = (config.get(name) for name in names)
    return next((float(v) for v in found if isinstance(v, (int, float)) and not isinstance(v, bool)), 0.0)
