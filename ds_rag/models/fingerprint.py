"""Which weights a retriever has: vectors that were made under one fingerprint belong together."""

from __future__ import annotations

import hashlib

import torch

from ds_rag.models.retriever import Retriever


def fingerprint(retriever: Retriever) -> str:
    """sha256 of weights and settings: whose vectors are whose. Of the part that this rank holds."""
    digest = hashlib.sha256(repr(retriever.settings).encode())
    parameters = dict(retriever.named_parameters(remove_duplicate=False))
    for name, tensor in sorted(retriever.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = getattr(parameters.get(name), "ds_tensor", tensor).detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()
