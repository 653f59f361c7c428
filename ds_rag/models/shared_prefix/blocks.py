"""Tensors over the shared-prefix layout (layout.py), split into groups of tokens that attend to each other.

Shape legend: T tokens of the row, R prefixes of P tokens, G blocks of n segments of S tokens, L = n * S, H heads,
D dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ds_rag.models.shared_prefix.layout import SharedCells


def heads_first(x: torch.Tensor) -> torch.Tensor:
    """(rows, L, H, D) -> (rows, H, L, D), a view."""
    return x.transpose(1, 2)


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """An additive mask: 0 where a pair is allowed, else a large negative number; finite, so that a fully masked row
    gives no NaN."""
    blocked = max(-1e9, torch.finfo(dtype).min / 2)
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, blocked)


class Cut:
    """Splits tensors (T, H, D) for three attentions. prefix: prefixes to themselves, (R, H, P, D). own: segments to
    themselves, (G * n, H, S, D). before: segments to their prefix, (G, H, n * S, D) for queries and (G, H, P, D) for
    keys.

    queries: tensors on the query side. keys: keys and values, possibly with fewer heads, each serving `groups` query
    heads. clean: zeros at padding, as gradients need.
    """

    def __init__(
        self,
        cells: SharedCells,
        queries: Sequence[torch.Tensor],
        keys: Sequence[torch.Tensor] = (),
        clean: bool = False,
    ):
        split, self.n, self.prefix_G = cells.prefix_tokens, cells.block, cells.prefix_G
        self.whole = cells.one_block_each
        self.groups = queries[0].shape[1] // keys[0].shape[1] if keys else 1
        tensors = [*queries, *keys]
        self.prefix = [heads_first(cells.prefixes.take(x[:split], clean)) for x in tensors]
        self.own: list[torch.Tensor] = []
        self.before: list[torch.Tensor] = []
        if cells.segments.rows:
            segments = [cells.segments.take(x[split:], clean) for x in tensors]  # (G * n, S, H, D)
            self.own = [heads_first(x) for x in segments]
            joined = [x.reshape(-1, self.n * x.shape[1], *x.shape[2:]) for x in segments[: len(queries)]]
            self.before = [heads_first(x) for x in joined] + [self.copy(x) for x in self.prefix[len(queries) :]]
        for part in (self.prefix, self.own, self.before):
            part[len(queries) :] = [self.spread(x) for x in part[len(queries) :]]

    def spread(self, x_kH: torch.Tensor) -> torch.Tensor:
        """Repeats every key head for each query head that it serves."""
        return x_kH if self.groups == 1 else x_kH.repeat_interleave(self.groups, dim=1)

    def gather(self, x_RHLD: torch.Tensor) -> torch.Tensor:
        """Adjoint of `spread`."""
        return x_RHLD if self.groups == 1 else x_RHLD.unflatten(1, (-1, self.groups)).sum(2)

    def copy(self, x_RHPD: torch.Tensor) -> torch.Tensor:
        return x_RHPD if self.whole else x_RHPD.index_select(0, self.prefix_G)

    def add_blocks(self, total_RHPD: torch.Tensor, share_GHPD: torch.Tensor) -> None:
        """Adjoint of `copy`, in place."""
        if self.whole:
            total_RHPD += share_GHPD
        else:
            total_RHPD.index_add_(0, self.prefix_G, share_GHPD)

    def by_segment(self, x: torch.Tensor) -> torch.Tensor:
        """(G, H, n * S, D) -> (G * n, H, S, D)"""
        return x.unflatten(2, (self.n, -1)).transpose(1, 2).flatten(0, 1)

    def by_block(self, x: torch.Tensor) -> torch.Tensor:
        """(G * n, H, S, D) -> (G, H, n * S, D)"""
        return x.unflatten(0, (-1, self.n)).transpose(1, 2).flatten(2, 3)
