"""Which passages of the pool the generator reads with each query, and the list of the resulting cells.

Shape legend: B queries, N passages of the pool, K candidates, C = B * K cells.
"""

from __future__ import annotations

import torch

from ds_rag.data.batch import Batch, CellList
from ds_rag.data.cells import list_pairs
from ds_rag.data.prompt import Prompt
from ds_rag.runtime import collectives


def choose_candidates(scores_BN: torch.Tensor, batch: Batch, wanted: str) -> torch.Tensor:
    """The candidates of each query: (B, K) int64 columns of the pool.

    First come labelled positives, then the row's other passages, then the positives of other rows with the same query,
    then the passages of the highest score. wanted: K as a number, or "all" for the full pool.

    Where rows have a teacher's scores: the passage that the teacher prefers, then those of the row's scored passages
    that the retriever prefers now, for the others teach it less. A query with fewer scored passages than K has others
    at the end, which have no score in `Batch.teacher_BN`.
    """
    N = scores_BN.shape[1]
    if batch.teacher_BN is not None:
        N = max(1, int((~batch.teacher_BN.isnan()).sum(1).max()))
    K = N if wanted == "all" else min(N, int(wanted))
    scores = scores_BN.detach()
    span = scores.max() - scores.min() + 1
    chosen_BK = (scores + span * precedence(batch)).topk(K, dim=1).indices
    if batch.shares:  # different hardware may round differently, but all ranks must have the same candidates
        return collectives.from_first(chosen_BK.cpu()).to(scores.device)
    return chosen_BK


def precedence(batch: Batch) -> torch.Tensor:
    """(B, N) float32: passages of a higher value are candidates before all others."""
    if batch.teacher_BN is not None:
        scored_BN = ~batch.teacher_BN.isnan()
        best_B = batch.teacher_BN.nan_to_num(nan=-torch.inf).argmax(1)
        return scored_BN.float() + torch.nn.functional.one_hot(best_B, scored_BN.shape[1])
    rank_BN = batch.own_BN.float() + batch.positive_BN.float()
    return rank_BN if batch.also_BN is None else rank_BN + (batch.own_BN | batch.also_BN).float()


def list_candidates(batch: Batch, candidates_BK: torch.Tensor, prompt: Prompt) -> CellList:
    """The B * K cells of these candidates, ordered by query; the target of each is the query's answer."""
    return list_pairs(prompt, batch.query_ids, batch.passage_ids, batch.answer_ids, candidates_BK.tolist())


def not_pushed_down(batch: Batch, read_BK: torch.Tensor | None = None) -> torch.Tensor | None:
    """The passages that may count as negatives: (B, N) bool, False at the positives of other rows with the same query,
    which a loss must not push down; None if there are no such passages.

    read_BK: columns that stay True in any case, because the generator reads them.
    """
    if batch.also_BN is None:
        return None
    mask_BN = ~batch.also_BN
    return mask_BN if read_BK is None else mask_BN.scatter(1, read_BK, True)
