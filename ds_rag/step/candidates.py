"""Which passages of the pool the generator reads with each query, and the cells that this makes.

Shape legend: B queries, N passages of the pool, K candidates, C = B * K cells.
"""

from __future__ import annotations

import numpy as np
import torch

from ds_rag.data.batch import Batch, CellList, list_cells
from ds_rag.data.prompt import Prompt
from ds_rag.runtime import collectives


def choose_candidates(scores_BN: torch.Tensor, batch: Batch, wanted: str) -> torch.Tensor:
    """(B, K) int64: labelled positives first, then the row's other passages, then positives of other rows with its
    query, then the best of the pool. wanted: a number, or "all"."""
    N = scores_BN.shape[1]
    K = N if wanted == "all" else min(N, int(wanted))
    scores = scores_BN.detach()
    span = scores.max() - scores.min() + 1
    rank_BN = batch.own_BN.float() + batch.positive_BN.float()
    if batch.also_BN is not None:
        rank_BN = rank_BN + (batch.own_BN | batch.also_BN).float()
    chosen_BK = (scores + span * rank_BN).topk(K, dim=1).indices
    if batch.shares:  # ranks of unlike hardware must not choose apart
        return collectives.from_first(chosen_BK.cpu()).to(scores.device)
    return chosen_BK


def list_candidates(batch: Batch, candidates_BK: torch.Tensor, prompt: Prompt) -> CellList:
    """The B * K cells of these columns, query by query; the answer is the target."""
    pairs = [(i, j) for i, row in enumerate(candidates_BK.tolist()) for j in row]
    answers = batch.answer_ids
    texts = [prompt.split(batch.passage_ids[j], batch.query_ids[i], len(answers[i])) for i, j in pairs]
    cells = list_cells(
        [prefix for prefix, _ in texts],
        [np.concatenate([rest, answers[i]]) for (i, _), (_, rest) in zip(pairs, texts, strict=True)],
        [len(answers[i]) for i, _ in pairs],
    )
    cells.query_C, cells.passage_C = [i for i, _ in pairs], [j for _, j in pairs]
    return cells


def not_pushed_down(batch: Batch, read_BK: torch.Tensor | None = None) -> torch.Tensor | None:
    """(B, N) bool, False at positives of other rows with the same query, which a loss must not push down; None where
    there are none. read_BK: columns that are candidates all the same, because the generator reads them."""
    if batch.also_BN is None:
        return None
    mask_BN = ~batch.also_BN
    return mask_BN if read_BK is None else mask_BN.scatter(1, read_BK, True)
