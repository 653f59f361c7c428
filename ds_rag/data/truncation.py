"""Token ids that know how many of their texts were cut: nothing is lost without a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class CutIds(list[list[int]]):
    """Token ids of several texts; `cut` of these were longer than the limit."""

    cut: int = 0


def cut_ids(tokenizer: Any, texts: Sequence[str], length: int, **options: Any) -> CutIds:
    """The ids of each text with the tokenizer's own special tokens (unless `options` say otherwise), at most `length`
    of them."""
    batch = tokenizer(list(texts), truncation=True, max_length=length, **options)
    ids = CutIds(batch["input_ids"])
    inner = getattr(batch, "encodings", None)
    if inner:  # the fast tokenizers keep what they cut off
        ids.cut = sum(bool(encoding.overflowing) for encoding in inner)
    else:
        full = [n for n, x in enumerate(ids) if len(x) >= length]
        ids.cut = sum(len(tokenizer([texts[n]], **options)["input_ids"][0]) > length for n in full)
    return ids
