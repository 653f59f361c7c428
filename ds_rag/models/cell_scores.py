"""Log-probabilities of the answers of cells, by a generator. B queries, K passages of a query, A answer tokens."""

from __future__ import annotations

import torch

from ds_rag.data.cells import QueryCells
from ds_rag.models.generator import Generator


def score_cells(generator: Generator, cells: QueryCells) -> torch.Tensor:
    """(B, K, A) log-probability of each answer token given each passage, in nats; float32 or wider.

    `logp_BKA[i, j, t]` is `log P(y_t | prompt(z_j, x_i), y_<t)`; what stands at places where `cells.answer_mask_BA` is
    False means nothing. One forward over all cells; with gradients, unless `torch.no_grad()` says otherwise. After
    `share_prefixes(generator)` every distinct passage is read once, with the same values.

    Raises:
        UserError: a token that the generator has no embedding for.

    Source: the reader of Lewis et al. 2020, arXiv:2005.11401, section 2.

    Example:
        >>> cells = ds_rag.cells(prompt, ["who ?"], [["ann was here", "bob was here"]], ["ann"])
        >>> logp_BKA = ds_rag.score_cells(generator, cells)
        >>> logp_BKA.shape == cells.shape, bool((logp_BKA <= 0).all())
        (True, True)
    """
    device = next(generator.lm.parameters()).device
    logp_CA = generator(generator.lay_out(cells.sequences, generator.tokenizer.pad_token_id).to(device))
    return logp_CA.view(cells.shape)
