"""From texts to vectors on all ranks: sorted by length, in batches of about equally many tokens, split among the
ranks."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch

from ds_rag.data.batch import pad_right
from ds_rag.data.dataset import TokenTable
from ds_rag.index.shards import shard_of
from ds_rag.index.vector_store import VectorStore, known_and_new, passage_keys
from ds_rag.models.adapters import has_adapters
from ds_rag.models.retriever import Retriever
from ds_rag.runtime import collectives, fault_injection, stop_signals
from ds_rag.runtime.console import Console

# Tokens that a CPU thread encodes at once. More is slower: activations do not fit the cache, are mapped again for every
# layer, and a larger batch has more padding (benchmarks/encode.py).
CPU_TOKENS = 512
PAUSE = 16  # forwards between two places where the ranks can agree to stop


def encode(
    retriever: Retriever,
    tokens: TokenTable,
    side: str,
    batch: int,
    console: Console | None = None,
    store: VectorStore | None = None,
) -> np.ndarray:
    """(N, D) float32 vectors of all texts, in their order, on every rank. Meant for queries, which are few.

    `side`: 'query' or 'passage'. Each rank encodes every world-th text of the length-sorted order, so that all have
    equal work. store: of passages; those that it knows are not encoded.
    """
    numbers = shard_of(tokens.lengths, collectives.rank(), collectives.world())
    budget, parts = token_budget(retriever, tokens, batch), []

    def embed(rows: np.ndarray) -> Iterator[np.ndarray]:
        return embed_rows(retriever, tokens, numbers[rows], side, budget)

    every = np.arange(len(numbers))
    batches = embed(every) if store is None else known_and_new(store, passage_keys(tokens, numbers), embed)
    with (console or Console(speaks=False)).progress(len(numbers), f"encoding {side}s", unit=side) as meter:
        for vectors in batches:
            parts.append(vectors)
            meter.advance(len(vectors))
    mine = np.concatenate(parts) if parts else np.zeros((0, retriever.hidden_size), np.float32)
    return in_text_order(collectives.gather_objects((numbers, mine)), len(tokens))


def precision_of(retriever: Retriever) -> str:
    """The precision in which vectors are computed: vectors of the same weights are the same only in the same precision.
    (Unmerged adapters round differently from merged ones.)"""
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in retriever.parameters()})
    beside = ["with adapters"] if has_adapters(retriever) else []
    return " ".join([*kinds, "on", retriever.log_temperature.device.type, *beside])


def token_budget(retriever: Retriever, tokens: TokenTable, batch: int) -> int:
    """The most tokens of one forward, padding included: `batch` texts of the longest length; on a CPU at most
    CPU_TOKENS per thread."""
    budget = batch * int(tokens.lengths.max(initial=1))
    on_cpu = retriever.log_temperature.device.type == "cpu"
    return min(budget, CPU_TOKENS * torch.get_num_threads()) if on_cpu else budget


def most_forwards(retriever: Retriever, count: int) -> int:
    """The maximum over ranks of the number of forwards, by one small reduction. All ranks call it together."""
    return int(collectives.all_max({"forwards": count}, retriever.log_temperature.device)["forwards"])


def embed_rows(
    retriever: Retriever,
    tokens: TokenTable,
    numbers: np.ndarray,
    side: str,
    budget: int,
    alone: bool = False,
) -> Generator[np.ndarray]:
    """Vectors (b, D) float32 of the texts of these numbers, batch by batch, in their order (longest first).

    All ranks run equally many forwards, those that are done early on one token: a sharded module (ZeRO stage 3)
    gathers its weights in each, and would wait for a rank that has stopped. alone: no other rank is asked or waited
    for, as in a thread, where no collective may run; the module must not be sharded. The wrapped module is called, not
    the engine: no gradient is kept and DeepSpeed counts no forward.
    """
    retriever.eval()
    device, pad = retriever.log_temperature.device, retriever.tokenizer.pad_token_id
    parts = list(cut(tokens.lengths[numbers], budget))
    most = len(parts) if alone else most_forwards(retriever, len(parts))
    for n, part in enumerate(parts):
        if not alone and n % PAUSE == 0:
            stop_signals.safe_place()
        padded = pad_right([tokens[n] for n in numbers[part]], pad).to(device)
        fault_injection.point("encode")
        with torch.no_grad():
            vectors = retriever.embed(padded, side).float().cpu().numpy()
        yield vectors
    one = pad_right([np.array([pad], dtype=np.int32)], pad).to(device)
    for n in range(len(parts), most):
        if not alone and n % PAUSE == 0:
            stop_signals.safe_place()
        with torch.no_grad():
            retriever.embed(one, side)


def cut(lengths: Sequence[int] | np.ndarray, budget: int) -> Iterator[slice]:
    """Batches of texts, longest first: as many texts as fit into `budget` tokens when padded to the first.

    A text longer than the budget is a batch by itself.
    """
    start = 0
    while start < len(lengths):
        stop = start + max(1, budget // max(1, int(lengths[start])))
        yield slice(start, min(stop, len(lengths)))
        start = stop


def in_text_order(shards: list[tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    """(count, D) vectors in the order of the texts. shards: the texts' numbers and vectors on each rank."""
    vectors = np.zeros((count, shards[0][1].shape[1]), np.float32)
    for order, part in shards:
        vectors[order] = part
    return vectors
