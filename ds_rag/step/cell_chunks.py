"""Cells in chunks that are read one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ds_rag.data.batch import CellList, list_cells


def split_cells(
    cells: CellList, chosen: Sequence[int], most_cells: int, most_tokens: int, shared: bool
) -> list[list[int]]:
    """`chosen` in chunks of at most so many cells and tokens (one cell at least), cells of one prefix side by side,
    long prefixes first. A prefix counts once in a chunk where it is shared."""
    order = sorted(chosen, key=lambda c: (-len(cells.prefixes[cells.prefix_C[c]]), cells.prefix_C[c]))
    chunks: list[list[int]] = []
    tokens, before = 0, -1
    for c in order:
        prefix, own = cells.prefix_C[c], len(cells.suffixes[c])
        size = len(cells.prefixes[prefix])
        added = own if shared and prefix == before else own + size
        if not chunks or len(chunks[-1]) >= most_cells or tokens + added > most_tokens:
            chunks.append([])
            tokens, added = 0, own + size
        chunks[-1].append(c)
        tokens += added
        before = prefix
    return chunks


def stand_in() -> CellList:
    """One cell of two tokens, whose gradient is zero."""
    token = np.zeros(1, np.int32)
    return list_cells([token], [token], [1])
