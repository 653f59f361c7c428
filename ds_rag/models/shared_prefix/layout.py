"""The shared-prefix layout: every passage's tokens once, for all the queries that read it.

All tokens of all cells are in one row without padding: first the prefixes, then the segments, those of one prefix next
to each other. A segment is the part of a cell after its prefix, without its last token, from which nothing is
predicted. Position ids of each segment continue those of its prefix, and attention (attention.py) lets a segment see
only its prefix and itself. The log-probabilities equal those of plain sequences; n cells of one passage take P + n S
tokens instead of n (P + S).

Shape legend: T tokens of the row, R prefixes of up to P tokens, G blocks of n segments of up to S tokens, C cells,
A tokens of the longest target, U distinct (place, next token) pairs, H heads, D dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from ds_rag.data.batch import CellList

BLOCK_SIZES = (1, 2, 4, 8, 16, 32)  # choices for the most segments that share one copy of their prefix's keys


@dataclass
class Padding:
    """Splits a row of tokens into padded rows of one length, and joins them again.

    take: (tokens, ...) -> (rows, length, ...); put: the inverse. Both are views if no row is padded.
    """

    lengths: list[int]  # tokens of each row; all are padded to the longest
    index: torch.Tensor  # (rows * length,) number of the token at each place; 0 at padding
    inverse: torch.Tensor  # (tokens,) place of each token
    holes: torch.Tensor  # places of padding

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def length(self) -> int:
        return max(self.lengths, default=0)

    @property
    def full(self) -> bool:
        """True if no row is padded."""
        return len(self.index) == len(self.inverse)

    def take(self, x: torch.Tensor, clean: bool = False) -> torch.Tensor:
        """Splits. clean: zeros at padding; otherwise padding holds the values of some token."""
        if not self.full:
            x = x.index_select(0, self.index)
            if clean:
                x.index_fill_(0, self.holes, 0.0)
        return x.reshape(self.rows, self.length, *x.shape[1:])

    def put(self, x: torch.Tensor) -> torch.Tensor:
        x = x.reshape(self.rows * self.length, *x.shape[2:])
        return x if self.full else x.index_select(0, self.inverse)

    def to(self, device: torch.device | str) -> Padding:
        return Padding(self.lengths, *(x.to(device) for x in (self.index, self.inverse, self.holes)))


def pad_rows(lengths: Sequence[int]) -> Padding:
    """The padding for rows of these lengths, in this order."""
    lengths_R = np.asarray(lengths, dtype=np.int64)
    real = np.arange(lengths_R.max(initial=0))[None, :] < lengths_R[:, None]
    index = np.zeros(real.shape, np.int64)
    index[real] = np.arange(lengths_R.sum())
    places = (torch.from_numpy(x) for x in (index.ravel(), np.flatnonzero(real), np.flatnonzero(~real)))
    return Padding([int(n) for n in lengths], *places)


@dataclass
class SharedCells:
    """Cells in the shared-prefix layout; see the top of the file. The generator turns them into (C, A)."""

    ids_T: torch.Tensor  # int64; prefixes, then segments
    positions_T: torch.Tensor  # int64
    place_U: torch.Tensor  # int64, place in the row from which a target token is predicted
    target_U: torch.Tensor  # int64, that token
    pick_CA: torch.Tensor  # int64, index into U of each target token of a cell; U (one past the end) at padding
    prefixes: Padding  # splits the prefixes: (R, P)
    segments: Padding  # splits the segments: (G * n, S)
    block: int  # n
    prefix_G: torch.Tensor  # int64, the prefix that a block's segments follow
    blocks_R: list[int]  # how many blocks each prefix has
    masked: bool  # always use the masked form of attention (masked.py)
    target_lengths: list[int]
    for_gradient: bool = False  # never use the form of attention that has no gradient (unpadded_cpu.py)
    masks: dict[Any, Any] = field(default_factory=dict)  # cache of attention.py for masks that all layers share

    @property
    def one_block_each(self) -> bool:
        """True if block g belongs to prefix g, so that no keys have to be copied."""
        return self.blocks_R == [1] * self.prefixes.rows

    @property
    def prefix_tokens(self) -> int:
        return len(self.prefixes.inverse)

    @property
    def token_count(self) -> int:
        """Tokens that the generator reads."""
        return len(self.ids_T)

    @property
    def target_length(self) -> int:
        return max(self.target_lengths)

    def to(self, device: torch.device | str) -> SharedCells:
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if hasattr(getattr(self, f.name), "to")}
        return replace(self, masks={}, **moved)


def lay_out_shared(cells: CellList, masked: bool = False) -> SharedCells:
    """The layout of these cells, on the CPU. Every prefix needs at least one token. masked: use the masked form of
    attention."""
    sizes_R = np.array([len(p) for p in cells.prefixes])
    assert sizes_R.min() > 0, "a prefix without a token"
    inner_C = np.array([len(s) - 1 for s in cells.suffixes])  # tokens of each segment
    prefix_C = np.asarray(cells.prefix_C)
    order = np.argsort(prefix_C, kind="stable")
    order = order[inner_C[order] > 0]
    starts_R = np.cumsum(sizes_R) - sizes_R
    starts_C = np.zeros(len(cells), np.int64)
    starts_C[order] = sizes_R.sum() + np.cumsum(inner_C[order]) - inner_C[order]
    block, prefix_G, rows = blocks(prefix_C[order], inner_C[order], len(sizes_R), int(sizes_R.max()), masked)
    segment_ids = [cells.suffixes[c][:-1] for c in order]
    segment_positions = [sizes_R[prefix_C[c]] + np.arange(inner_C[c]) for c in order]
    place, target, pick = predictions(cells, sizes_R, starts_R, starts_C)

    def row(parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    return SharedCells(
        ids_T=row([*cells.prefixes, *segment_ids]),
        positions_T=row([*(np.arange(n) for n in sizes_R), *segment_positions]),
        place_U=torch.from_numpy(place),
        target_U=torch.from_numpy(target),
        pick_CA=torch.from_numpy(pick),
        prefixes=pad_rows(sizes_R.tolist()),
        segments=pad_rows(rows),
        block=block,
        prefix_G=torch.from_numpy(prefix_G),
        masked=masked,
        blocks_R=np.bincount(prefix_G, minlength=len(sizes_R)).tolist(),
        target_lengths=cells.target_lengths,
    )


def blocks(
    prefix_S: np.ndarray, sizes_S: np.ndarray, prefixes: int, longest: int, masked: bool = False
) -> tuple[int, np.ndarray, list[int]]:
    """How segments are grouped for attention: (n, prefix_G, sizes of the G * n rows, 0 for an empty one).

    prefix_S, sizes_S: prefix and length of each segment, in order. A block holds up to n segments of one prefix; n is
    chosen for the fewest (query, key) pairs to compute and keys to copy. masked: pairs between segments of a block are
    computed too, and masked.
    """
    counts_R = np.bincount(prefix_S, minlength=prefixes)
    width = int(sizes_S.max(initial=0))
    candidates = [n for n in BLOCK_SIZES if n <= max(1, counts_R.max(initial=0))]
    candidates.append(min(int(counts_R.max(initial=1)), BLOCK_SIZES[-1]))  # with equal counts no place is left empty

    def cost(n: int) -> int:
        blocks_R = -(-counts_R // n)
        return int(blocks_R.sum()) * (n * width * (longest + (n if masked else 1) * width) + 8 * longest)

    n = min(candidates, key=cost)
    rows: list[int] = []
    sizes = iter(sizes_S.tolist())
    for count in counts_R.tolist():
        rows += [next(sizes) for _ in range(count)] + [0] * (-count % n)
    return n, np.repeat(np.arange(prefixes), -(-counts_R // n)), rows


def predictions(
    cells: CellList, sizes_R: np.ndarray, starts_R: np.ndarray, starts_C: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """place_U, target_U and pick_CA. Predictions that several cells make from their common prefix are computed once."""
    places, targets, lengths = [], [], np.asarray(cells.target_lengths)
    for c, (prefix, suffix) in enumerate(zip(cells.prefix_C, cells.suffixes, strict=True)):
        size, n = int(sizes_R[prefix]), cells.target_lengths[c]
        at = np.arange(size + len(suffix) - n, size + len(suffix))  # of the targets, in the cell
        before = at - 1
        places.append(np.where(before < size, starts_R[prefix] + before, starts_C[c] + before - size))
        assert size + len(suffix) > n, "a target without a context"
        inside = min(max(0, n - len(suffix)), n)  # target tokens that belong to the prefix
        targets.append(np.concatenate([cells.prefixes[prefix][size - inside :], suffix[len(suffix) - n + inside :]]))
    pairs = np.stack([np.concatenate(places), np.concatenate(targets).astype(np.int64)])
    unique, which = np.unique(pairs, axis=1, return_inverse=True)
    real = np.arange(lengths.max())[None, :] < lengths[:, None]
    pick = np.full(real.shape, unique.shape[1], np.int64)
    pick[real] = which.ravel()
    return np.ascontiguousarray(unique[0]), np.ascontiguousarray(unique[1]), pick
