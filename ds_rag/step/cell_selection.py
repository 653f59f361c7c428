"""Which cells are worth a backward pass: by the weight that the objective gives their tokens.

With `w = -d objective / d g` (g: token log-probabilities) the generator's gradient is that of `-(w * g).sum()`: cells
of small weight hardly move it, and it can be estimated from cells drawn at random.

Shape legend: C cells, B queries, A tokens of the longest target.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def token_fractions(weight_CA: torch.Tensor, query_C: torch.Tensor, queries: int) -> torch.Tensor:
    """(C, A) each cell's part of what all cells of its query weigh at that token; 0 where none weighs anything.

    Under `rag_sequence` it is the posterior r_ij at every token, under `rag_token` r_ijt, under a reader loss with
    the prior p_ij: the factors that a mean over tokens or rows puts before them cancel.
    """
    size_CA = weight_CA.abs()
    total_BA = size_CA.new_zeros(queries, size_CA.shape[1]).index_add_(0, query_C, size_CA)
    total_CA = total_BA[query_C]
    return torch.where(total_CA > 0, size_CA / total_CA.clamp(min=torch.finfo(size_CA.dtype).tiny), 0.0)


def cell_fractions(share_CA: torch.Tensor, query_C: torch.Tensor, queries: int) -> torch.Tensor:
    """(C,) mean of `token_fractions` over the query's tokens that weigh anything; sums to 1 over a query's cells."""
    sum_BA = share_CA.new_zeros(queries, share_CA.shape[1]).index_add_(0, query_C, share_CA)
    tokens_B = (sum_BA > 0).sum(1)
    return share_CA.sum(1) / tokens_B.clamp(min=1)[query_C]


def keep_heavy(
    weight_CA: torch.Tensor, query_C: torch.Tensor, queries: int, threshold: float
) -> tuple[torch.Tensor, float]:
    """Keeps the cells whose share reaches `threshold` at some token, and each query's heaviest.

    Returns:
        bool (C,), and the dropped mass: the share of the dropped cells, mean over queries. The gradient's error is
        at most the dropped weight times the largest gradient of a cell; kept cells can cancel, so no relative bound
        follows.
    """
    share_CA = token_fractions(weight_CA, query_C, queries)
    share_C = cell_fractions(share_CA, query_C, queries)
    best_B = share_C.new_zeros(queries).scatter_reduce_(0, query_C, share_C, "amax")
    keep_C = (share_CA.amax(1) >= threshold) | ((share_C == best_B[query_C]) & (share_C > 0))
    keep_C |= ~weight_CA.isfinite().all(1)  # the step that it spoils must be seen, and skipped
    return keep_C, float(share_C[~keep_C].sum()) / max(1, queries)


def draw_one(
    weight_CA: torch.Tensor, query_C: torch.Tensor, queries: int, seed: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws one cell for each query, with probability q = `cell_fractions`.

    Returns:
        bool (C,), and (C,) the factor 1 / q by which a drawn cell's weights are multiplied: over draws the expected
        gradient is the exact one.
    """
    share_C = cell_fractions(token_fractions(weight_CA, query_C, queries), query_C, queries)
    share, owner = share_C.double().cpu().numpy(), query_C.cpu().numpy()
    level_B = np.random.default_rng(list(seed)).random(queries)
    keep_C = torch.zeros(len(share), dtype=torch.bool)
    for query in range(queries):
        cells = np.flatnonzero((owner == query) & (share > 0))
        if len(cells):
            levels = np.cumsum(share[cells])
            keep_C[cells[np.searchsorted(levels, level_B[query] * levels[-1], side="right")]] = True
    factor_C = torch.where(keep_C.to(share_C.device), 1.0 / share_C.clamp(min=torch.finfo(share_C.dtype).tiny), 0.0)
    spoilt_C = ~weight_CA.isfinite().all(1)  # kept, so that the step that they spoil is seen, and skipped
    return keep_C.to(share_C.device) | spoilt_C, factor_C.masked_fill(spoilt_C, 1.0)
