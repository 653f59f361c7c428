"""Answers' log-probabilities as a careful user of transformers computes them, and the FLOPs of both layouts by hand.

Shape legend: C sequences of a batch, T tokens of the longest, A answer tokens of all of them, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ds_rag.data.batch import CellList, pad_right
from ds_rag.models.generator import Generator


def plain_copy(generator: Generator) -> Any:
    """The same weights with transformers' own attention."""
    lm = copy.deepcopy(generator.lm).eval()
    lm.set_attn_implementation("sdpa")
    return lm


def padded_batches(cells: CellList, size: int) -> list[list[int]]:
    """The numbers of the cells in batches of `size`, sorted by length, so that little is padded."""
    lengths = [len(cells.prefixes[p]) + len(s) for p, s in zip(cells.prefix_C, cells.suffixes, strict=True)]
    order = sorted(range(len(cells)), key=lambda c: -lengths[c])
    return [order[start : start + size] for start in range(0, len(order), size)]


@torch.no_grad()
def read_padded(lm: Any, cells: CellList, chunk: Sequence[int], pad: int) -> dict[int, np.ndarray]:
    """Cell -> (its answer's tokens,) float32 log-probabilities in nats: every cell is a sequence of its own, padded on
    the right, with logits only where an answer token is predicted."""
    whole = [np.concatenate([cells.prefixes[cells.prefix_C[c]], cells.suffixes[c]]) for c in chunk]
    tokens, counts = pad_right(whole, pad), [cells.target_lengths[c] for c in chunk]
    ends = [len(ids) for ids in whole]
    row_A = torch.tensor([r for r, n in enumerate(counts) for _ in range(n)])
    place_A = torch.tensor([t for end, n in zip(ends, counts, strict=True) for t in range(end - n, end)])
    hidden_CTD = lm.base_model(
        input_ids=tokens.ids_BT, attention_mask=tokens.mask_BT, use_cache=False
    ).last_hidden_state
    logits_AV = lm.get_output_embeddings()(hidden_CTD[row_A, place_A - 1]).float()
    logp_A = -nn.functional.cross_entropy(logits_AV, tokens.ids_BT[row_A, place_A], reduction="none")
    return {c: part.numpy() for c, part in zip(chunk, logp_A.split(counts), strict=True)}


@dataclass
class Work:
    """What a layout reads: tokens, (query, key) pairs of attention that are not masked by causality, predicted
    tokens."""

    tokens: float = 0.0
    pairs: float = 0.0
    targets: float = 0.0

    def flops(self, lm: Any) -> float:
        """Two for each weight and token, four for each pair and number of a head, and the head where it predicts."""
        config = lm.config.get_text_config()
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        attention = 4.0 * config.num_attention_heads * width * config.num_hidden_layers * self.pairs
        return (
            2.0 * linear_weights(lm) * self.tokens
            + attention
            + 2.0 * config.hidden_size * lm.vocab_size * (self.targets)
        )


def linear_weights(lm: Any) -> int:
    """Weights of the layers' linear maps, without embeddings and head."""
    return sum(m.weight.numel() for m in lm.base_model.modules() if isinstance(m, nn.Linear))


def shared_work(cells: CellList, chunks: Sequence[Sequence[int]]) -> Work:
    """Of the shared layout: in each chunk a passage's prefix once, then each cell without its last token."""
    done = Work()
    for chunk in chunks:
        for prefix in {cells.prefix_C[c] for c in chunk}:
            length = len(cells.prefixes[prefix])
            done.tokens += length
            done.pairs += length * (length + 1) / 2
        for c in chunk:
            before, length = len(cells.prefixes[cells.prefix_C[c]]), len(cells.suffixes[c]) - 1
            done.tokens += length
            done.pairs += length * before + length * (length + 1) / 2
            done.targets += cells.target_lengths[c]
    return done


def padded_work(cells: CellList, batches: Sequence[Sequence[int]]) -> Work:
    """Of padded batches: every row is as long as the batch's longest."""
    done = Work()
    for batch in batches:
        longest = max(len(cells.prefixes[cells.prefix_C[c]]) + len(cells.suffixes[c]) for c in batch)
        done.tokens += len(batch) * longest
        done.pairs += len(batch) * longest * (longest + 1) / 2
        done.targets += sum(cells.target_lengths[c] for c in batch)
    return done
