"""Texts to vectors across ranks: sorted by length, batches of equally many tokens, each rank its share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ds_rag import dist
from ds_rag.batch import pad_right
from ds_rag.data.dataset import TokenTable
from ds_rag.log import Console
from ds_rag.models.retriever import Retriever

# Tokens a thread of a CPU encodes at once. More is slower there: activations leave the cache, are mapped anew for
# every layer, and a wider batch holds more padding (benchmarks/encode.py).
CPU_TOKENS = 512


@torch.no_grad()
def encode(
    retriever: Retriever, tokens: TokenTable, side: str, batch: int, console: Console | None = None
) -> np.ndarray:
    """(N, D) float32 vectors of all texts, in their own order, on every rank. `side`: 'query' or 'passage'.

    `batch` texts of the longest length go in one forward, more of shorter ones: as many as fill it with no more
    tokens, padding included. On a CPU it is fewer where CPU_TOKENS says so.

    Each rank encodes every world-th text of the length-sorted order, so shares are equal in work. The wrapped
    module is called, not the engine: no gradient is kept and DeepSpeed counts no forward (stages 0 to 2 hold whole
    weights on every rank).
    """
    retriever.eval()
    device = retriever.log_temperature.device
    lengths = tokens.lengths
    order = np.argsort(-lengths, kind="stable")[dist.rank() :: dist.world()]
    budget = batch * int(lengths.max(initial=1))
    if device.type == "cpu":
        budget = min(budget, CPU_TOKENS * torch.get_num_threads())
    parts = []
    with (console or Console(speaks=False)).progress(len(order), f"encoding {side}s", unit=side) as meter:
        for part in cut(lengths[order], budget):
            numbers = order[part]
            padded = pad_right([tokens[n] for n in numbers], retriever.tokenizer.pad_token_id).to(device)
            parts.append(retriever.embed(padded, side).float().cpu().numpy())
            meter.advance(len(numbers))
    mine = np.concatenate(parts) if parts else np.zeros((0, retriever.hidden_size), np.float32)
    return join(dist.gather_objects((order, mine)), len(tokens))


def cut(lengths: Sequence[int] | np.ndarray, budget: int) -> Iterator[slice]:
    """Batches of texts, longest first: each as long as its texts, padded to its first, are at most `budget` tokens.

    A text longer than that is a batch by itself.
    """
    start = 0
    while start < len(lengths):
        stop = start + max(1, budget // max(1, int(lengths[start])))
        yield slice(start, min(stop, len(lengths)))
        start = stop


def join(shares: list[tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    """The ranks' shares in the texts' own order."""
    vectors = np.zeros((count, shares[0][1].shape[1]), np.float32)
    for order, part in shares:
        vectors[order] = part
    return vectors
