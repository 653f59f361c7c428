"""Which weights a retriever has: vectors that were made under one fingerprint belong together."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from ds_rag.models.retriever import Retriever

INCIDENTAL = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")


def fingerprint(retriever: Retriever) -> str:
    """sha256 of weights and settings: whose vectors are whose. Of the part that this rank holds."""
    digest = hashlib.sha256(repr(retriever.settings).encode())
    add_weights(digest, retriever)
    return digest.hexdigest()


def passages_fingerprint(retriever: Retriever) -> str:
    """The same of what the vectors of passages are made by: another encoder of queries leaves it as it is."""
    digest = hashlib.sha256(repr(retriever.settings).encode())
    add_weights(digest, retriever.passage_encoder or retriever.encoder)
    return digest.hexdigest()


def hash_weights(module: nn.Module) -> str:
    """sha256 of a model's weights, of the part that this rank holds."""
    digest = hashlib.sha256()
    add_weights(digest, module)
    return digest.hexdigest()


def hash_encoder(encoder: nn.Module) -> str:
    """The same of an encoder, without the pooler of transformers, whose output is not used: a folder that has none is
    opened with a random one."""
    digest = hashlib.sha256()
    add_weights(digest, encoder, without="pooler.")
    return digest.hexdigest()


def hash_configuration(config: Any) -> str:
    """sha256 of a transformers configuration, without the entries that change no result."""
    settings = {name: value for name, value in config.to_dict().items() if name not in INCIDENTAL}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def add_weights(digest: hashlib._Hash, module: nn.Module, without: str | None = None) -> None:
    """Names, types, shapes and values of all that the module's state holds. without: the beginning of names to leave
    out."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, tensor in sorted(module.state_dict().items()):
        if without is not None and name.startswith(without):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = getattr(parameters.get(name), "ds_tensor", tensor).detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
