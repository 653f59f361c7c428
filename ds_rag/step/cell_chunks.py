"""Splitting a list of cells into chunks that the generator reads one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ds_rag.data.batch import CellList, list_cells


def split_cells(
    cells: CellList, chosen: Sequence[int], most_cells: int, most_tokens: int, shared: bool
) -> list[list[int]]:
    """The indices `chosen` in chunks of at most `most_cells` cells and `most_tokens` tokens, but at least one cell.

    Cells with the same prefix are side by side, the longest prefixes first. shared: the tokens of a prefix count once
    in a chunk, not once for each cell; and its cells are divided by tokens only where one chunk cannot hold them, since
    a second chunk would read the prefix again.
    """
    order = sorted(chosen, key=lambda c: (-len(cells.prefixes[cells.prefix_C[c]]), cells.prefix_C[c]))
    whole = Counter[int]()  # tokens of a prefix with all its cells
    for c in chosen if shared else ():
        prefix = cells.prefix_C[c]
        whole[prefix] = (whole[prefix] or len(cells.prefixes[prefix])) + len(cells.suffixes[c])
    chunks: list[list[int]] = []
    tokens, before = 0, -1
    for c in order:
        prefix, suffix_tokens = cells.prefix_C[c], len(cells.suffixes[c])
        both = suffix_tokens + len(cells.prefixes[prefix])
        added = suffix_tokens if shared and prefix == before else both
        undivided = shared and prefix != before and whole[prefix] <= most_tokens
        ahead = whole[prefix] if undivided else added
        if not chunks or len(chunks[-1]) >= most_cells or tokens + ahead > most_tokens:
            chunks.append([])
            tokens, added = 0, both
        chunks[-1].append(c)
        tokens += added
        before = prefix
    return chunks


def stand_in() -> CellList:
    """A dummy cell of two tokens, for a rank that has none to read; its gradient is set to zero."""
    token = np.zeros(1, np.int32)
    return list_cells([token], [token], [1])
