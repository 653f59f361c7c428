"""Chooses the cells that get a backward pass, by the weight that the objective gives to their tokens.

With `w = -d objective / d g` (g: token log-probabilities) the generator's gradient is that of `-(w * g).sum()`. So
cells of small weight hardly change it, and it can be estimated from cells that are drawn at random.

Shape legend: C cells, B queries, A tokens of the longest target.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def token_fractions(weight_CA: torch.Tensor, query_C: torch.Tensor, queries: int) -> torch.Tensor:
    """(C, A): each cell's fraction of the absolute weight of all cells of its query, at each token; 0 at a token where
    all weights are 0.

    For `rag_sequence` it is the posterior r_ij at every token, for `rag_token` r_ijt, for a reader loss with prior
    weights p_ij. Constant factors, such as those of a mean over tokens or rows, cancel.
    """
    size_CA = weight_CA.abs()
    total_BA = size_CA.new_zeros(queries, size_CA.shape[1]).index_add_(0, query_C, size_CA)
    total_CA = total_BA[query_C]
    return torch.where(total_CA > 0, size_CA / total_CA.clamp(min=torch.finfo(size_CA.dtype).tiny), 0.0)


def cell_fractions(fraction_CA: torch.Tensor, query_C: torch.Tensor, queries: int) -> torch.Tensor:
    """(C,): mean of `token_fractions` over those tokens of the query that have a weight above 0. Sums to 1 over the
    cells of a query."""
    sum_BA = fraction_CA.new_zeros(queries, fraction_CA.shape[1]).index_add_(0, query_C, fraction_CA)
    tokens_B = (sum_BA > 0).sum(1)
    return fraction_CA.sum(1) / tokens_B.clamp(min=1)[query_C]


def keep_heavy(
    weight_CA: torch.Tensor, query_C: torch.Tensor, queries: int, threshold: float
) -> tuple[torch.Tensor, float]:
    """Keeps the cells whose fraction is at least `threshold` at some token, and the heaviest cell of each query.

    Returns:
        (C,) bool, and the dropped mass: the summed fraction of a query's dropped cells, mean over queries. The error of
        the gradient is at most the dropped weight times the largest gradient of a cell. There is no bound on the
        relative error, because the gradients of the kept cells can cancel.
    """
    fraction_CA = token_fractions(weight_CA, query_C, queries)
    fraction_C = cell_fractions(fraction_CA, query_C, queries)
    best_B = fraction_C.new_zeros(queries).scatter_reduce_(0, query_C, fraction_C, "amax")
    keep_C = (fraction_CA.amax(1) >= threshold) | ((fraction_C == best_B[query_C]) & (fraction_C > 0))
    keep_C |= ~weight_CA.isfinite().all(1)  # kept, so that the step is recognised as not finite and skipped
    return keep_C, float(fraction_C[~keep_C].sum()) / max(1, queries)


def draw_one(
    weight_CA: torch.Tensor, query_C: torch.Tensor, queries: int, seed: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws one cell for each query, with probability q = `cell_fractions`.

    Returns:
        (C,) bool, True at the drawn cells, and (C,) their factors 1 / q, else 0. Weights multiplied by these factors
        make the expectation of the gradient over draws equal to the exact gradient.
    """
    fraction_C = cell_fractions(token_fractions(weight_CA, query_C, queries), query_C, queries)
    fractions, owner = fraction_C.double().cpu().numpy(), query_C.cpu().numpy()
    level_B = np.random.default_rng(list(seed)).random(queries)
    keep_C = torch.zeros(len(fractions), dtype=torch.bool)
    for query in range(queries):
        cells = np.flatnonzero((owner == query) & (fractions > 0))
        if len(cells):
            levels = np.cumsum(fractions[cells])
            keep_C[cells[np.searchsorted(levels, level_B[query] * levels[-1], side="right")]] = True
    factor_C = torch.where(
        keep_C.to(fraction_C.device), 1.0 / fraction_C.clamp(min=torch.finfo(fraction_C.dtype).tiny), 0.0
    )
    bad_C = ~weight_CA.isfinite().all(1)  # kept, so that the step is recognised as not finite and skipped
    return keep_C.to(fraction_C.device) | bad_C, factor_C.masked_fill(bad_C, 1.0)
