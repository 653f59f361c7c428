"""Texts to vectors across ranks: sorted by length, no padding to a maximum, each rank its share."""

from __future__ import annotations

import numpy as np
import torch

from ds_rag import dist
from ds_rag.batch import pad_right
from ds_rag.data.dataset import TokenTable
from ds_rag.log import Console
from ds_rag.models.retriever import Retriever


@torch.no_grad()
def encode(
    retriever: Retriever, tokens: TokenTable, side: str, batch: int, console: Console | None = None
) -> np.ndarray:
    """(N, D) float32 vectors of all texts, in their own order, on every rank. `side`: 'query' or 'passage'.

    Each rank encodes every world-th text of the length-sorted order, so shares are equal in work. The wrapped
    module is called, not the engine: no gradient is kept and DeepSpeed counts no forward (stages 0 to 2 hold whole
    weights on every rank).
    """
    retriever.eval()
    device = retriever.log_temperature.device
    order = np.argsort(-tokens.lengths, kind="stable")[dist.rank() :: dist.world()]
    parts = []
    with (console or Console(speaks=False)).progress(len(order), f"encoding {side}s", unit=side) as meter:
        for start in range(0, len(order), batch):
            numbers = order[start : start + batch]
            padded = pad_right([tokens[n] for n in numbers], retriever.tokenizer.pad_token_id).to(device)
            parts.append(retriever.embed(padded, side).float().cpu().numpy())
            meter.advance(len(numbers))
    mine = np.concatenate(parts) if parts else np.zeros((0, retriever.hidden_size), np.float32)
    return join(dist.gather_objects((order, mine)), len(tokens))


def join(shares: list[tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    """The ranks' shares in the texts' own order."""
    vectors = np.zeros((count, shares[0][1].shape[1]), np.float32)
    for order, part in shares:
        vectors[order] = part
    return vectors
