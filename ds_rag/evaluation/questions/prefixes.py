"""Keys and values of prompts that begin alike: the common beginning is read once, each passage once after it.

What a model continues from is then the prefix of its passage, for as many continuations as are wanted. Passages of
different lengths stand right before their continuations, with padding between them and the common beginning, which
takes up no positions.

Shape legend: P passages, R continuations, W tokens of the longest passage, T tokens of a row.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ds_rag.data.batch import Ids
from ds_rag.models.generator import Generator
from ds_rag.models.shared_prefix.support import TOLERANCE, has_windows

Rows = tuple[np.ndarray, np.ndarray]  # ids and mask, both (R, T) int64


class Prefixes:
    """Reads `first`, the token ids with which every prompt begins, and then passages after it."""

    def __init__(self, generator: Generator, first: Ids):
        self.generator, self.first = generator, first
        self.pad = int(generator.tokenizer.pad_token_id)
        self.shared: Any = None  # keys and values of `first`, once they are needed

    def read(self, passages: Sequence[Ids], places: Sequence[int]) -> tuple[Rows, Any]:
        """Ids and mask of `first` and a passage, and their keys and values, for R continuations: the n-th is of passage
        `places[n]`."""
        own, own_mask = pad_left(passages, self.pad)
        before = np.broadcast_to(self.first.astype(np.int64), (len(passages), len(self.first)))
        ids, mask = np.concatenate([before, own], axis=1), np.concatenate([np.ones_like(before), own_mask], axis=1)
        cache = self._of_first(len(passages))
        self.forward((own, mask), cache)
        cache.batch_select_indices(torch.tensor(list(places), device=self.generator.lm.device))
        return (ids[list(places)], mask[list(places)]), cache

    def _of_first(self, copies: int) -> Any:
        from transformers import DynamicCache

        if self.shared is None:
            self.shared = DynamicCache(config=self.generator.lm.config)
            ids = self.first[None].astype(np.int64)
            self.forward((ids, np.ones_like(ids)), self.shared)
        cache = copy.deepcopy(self.shared)
        cache.batch_repeat_interleave(copies)
        return cache

    def forward(self, rows: Rows, cache: Any = None) -> torch.Tensor:
        """The logits after the last place, (R, vocabulary); the rows' keys and values are added to the cache. The mask
        also covers what the cache has already."""
        ids, mask = rows
        extra: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        if self.generator.keeps_logits:
            extra["logits_to_keep"] = 1
        if self.generator.takes_positions:
            positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
            extra["position_ids"] = self.tensor(positions)
        use = {"input_ids": self.tensor(ids), "attention_mask": self.tensor(mask), "use_cache": cache is not None}
        logits: torch.Tensor = self.generator.lm(**use, **extra).logits[:, -1]
        return logits

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self.generator.lm.device)


def pad_left(rows: Sequence[Ids], pad: int) -> Rows:
    width = max(map(len, rows))
    ids, mask = np.full((len(rows), width), pad, np.int64), np.zeros((len(rows), width), np.int64)
    for row, own in enumerate(rows):
        ids[row, width - len(own) :], mask[row, width - len(own) :] = own, 1
    return ids, mask


def followed(rows: Rows, rest: Ids) -> Rows:
    """The same with `rest` after each row."""
    more = np.broadcast_to(rest.astype(np.int64), (len(rows[0]), len(rest)))
    return np.concatenate([rows[0], more], axis=1), np.concatenate([rows[1], np.ones_like(more)], axis=1)


@torch.no_grad()
def misfit(generator: Generator) -> str | None:
    """None, or why prompts must be read one by one: asked of the model itself, which reads a few short sequences both
    ways."""
    if has_windows(generator.lm.config.get_text_config()):
        return "its attention has windows, in which the padding would count"
    training = generator.training
    generator.eval()
    try:
        ids = np.random.default_rng(0).integers(0, generator.vocabulary, (4, 9)).astype(np.int32)
        first, passages, rest = ids[0, :6], [ids[1, :4], ids[2]], ids[3, :3]
        prefixes = Prefixes(generator, first)
        alone = prefixes.forward(
            pad_left([np.concatenate([first, passages[n], rest]) for n in (1, 0, 1)], prefixes.pad)
        )
        rows, cache = prefixes.read(passages, [1, 0, 1])
        (ids_R, mask_R) = followed(rows, rest)
        together = prefixes.forward((ids_R[:, -len(rest) :], mask_R), cache)
        apart = float((alone - together).abs().max())  # NaN is no agreement
        if not apart <= TOLERANCE.get(generator.lm.dtype, 1e-3) * max(1.0, float(alone.abs().max())):
            return f"what it continues differs by {apart:.2g} from plain sequences"
        return None
    except Exception as error:  # whatever a foreign model's code raises: plain sequences still serve it
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        generator.train(training)
