"""Token ids that record how many texts were truncated, so that it can be reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class CutIds(list[list[int]]):
    """Token ids of several texts; cut: the number of texts that were longer than the limit."""

    cut: int = 0


def cut_ids(tokenizer: Any, texts: Sequence[str], length: int, **options: Any) -> CutIds:
    """The ids of each text, at most `length`, with the tokenizer's own special tokens (unless `options` say
    otherwise)."""
    batch = tokenizer(list(texts), truncation=True, max_length=length, **options)
    ids = CutIds(batch["input_ids"])
    inner = getattr(batch, "encodings", None)
    if inner:  # fast tokenizers keep what they truncated
        ids.cut = sum(bool(encoding.overflowing) for encoding in inner)
    else:
        full = [n for n, x in enumerate(ids) if len(x) >= length]
        ids.cut = sum(len(tokenizer([texts[n]], **options)["input_ids"][0]) > length for n in full)
    return ids
