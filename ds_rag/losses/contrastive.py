"""Losses that are trained on labelled positives: InfoNCE, and the DALM toolkit's `positive_only`.

Shapes: B queries, N passages in the pool, T tokens of the generator's full input (prompt and answer).
Scores are already divided by the temperature; all values are in nats. Half precision is computed in float32, float64
in float64. Masked elements may have any value, even NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ds_rag.losses.marginal import fill_value, masked_log_softmax, wide


def _pair_losses(scores_BN: Tensor, positive_mask_BN: Tensor, candidate_mask_BN: Tensor | None, dim: int) -> Tensor:
    """-log softmax over `dim` at each (query, positive) pair, without the other positives in the denominator of that
    pair; 0 where there is no pair."""
    assert scores_BN.shape == positive_mask_BN.shape, (scores_BN.shape, positive_mask_BN.shape)
    pair_BN, scores_BN = positive_mask_BN.bool(), wide(scores_BN)
    negative_BN = ~pair_BN
    if candidate_mask_BN is not None:
        candidate_BN = candidate_mask_BN.bool()
        pair_BN, negative_BN = pair_BN & candidate_BN, negative_BN & candidate_BN
    fill = fill_value(scores_BN)
    negatives = torch.logsumexp(torch.where(negative_BN, scores_BN, fill), dim, keepdim=True)
    # -log(e^s / (e^s + sum of negatives)) = log(1 + e^(negatives - s)), the exact softplus
    margin_BN = torch.where(pair_BN, negatives - torch.where(pair_BN, scores_BN, 0.0), fill)
    return torch.logaddexp(margin_BN, torch.zeros_like(margin_BN))


def count_pairs(positive_mask_BN: Tensor, candidate_mask_BN: Tensor | None = None) -> Tensor:
    """Number of (query, positive) pairs, an integer scalar, by which the `infonce` sum of a step is divided.

    Example:
        >>> count_pairs(torch.tensor([[True, False, True], [False, True, False]]))
        tensor(3)
    """
    pair_BN = positive_mask_BN.bool()
    return (pair_BN if candidate_mask_BN is None else pair_BN & candidate_mask_BN.bool()).sum()


def infonce(scores_BN: Tensor, positive_mask_BN: Tensor, candidate_mask_BN: Tensor | None = None) -> Tensor:
    """Contrastive cross-entropy over the pool: each positive against the passages that are not positives.

    With one positive the gradient with respect to the scores is `p - 1[j = positive]`.

    Args:
        scores_BN: retriever scores, already divided by the temperature.
        positive_mask_BN: True where the passage is a positive of the query; a row may have none or several.
        candidate_mask_BN: True where the passage is in the pool; None for all. A positive outside the pool does not
            count.

    Returns:
        loss_B, nats, *summed* over the row's pairs: divide by `count_pairs` of the full optimizer step.

    Source: Karpukhin et al. 2020, arXiv:2004.04906, eq. 2, for one positive.

    Example:
        >>> scores_BN = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> infonce(scores_BN, torch.eye(2, dtype=torch.bool))
        tensor([0.1269, 0.3133])
    """
    return _pair_losses(scores_BN, positive_mask_BN, candidate_mask_BN, 1).sum(1)


def infonce_columns(scores_BN: Tensor, positive_mask_BN: Tensor, candidate_mask_BN: Tensor | None = None) -> Tensor:
    """InfoNCE over columns: for each pair, its query against the queries of which the passage is not a positive.

    Arguments, result and denominator as in `infonce`; the loss of a pair is added to the row of its query.

    Example:
        >>> scores_BN = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
        >>> infonce_columns(scores_BN, torch.eye(2, dtype=torch.bool))
        tensor([0.1269, 0.6931])
    """
    return _pair_losses(scores_BN, positive_mask_BN, candidate_mask_BN, 0).sum(1)


@dataclass(frozen=True)
class PositiveOnly:
    """The terms of `positive_only`, not yet divided, so that a step can divide them by its counts over micro-batches.

    lm_B: cross-entropy of all the tokens of the positive's sequence.
    doc_prior_B: answer tokens * -l[i, pos], where l is the log-softmax of the scores.
    rows_B, columns_B: InfoNCE over rows and over columns.
    tokens_B: all tokens; divides `lm_B` and `doc_prior_B`.
    pairs_B: (query, positive) pairs; divides `rows_B` and `columns_B`.

    Example:
        >>> ones = torch.ones(1)
        >>> PositiveOnly(6 * ones, 0 * ones, 2 * ones, 4 * ones, tokens_B=3 * ones, pairs_B=ones).loss()
        tensor(5.)
    """

    lm_B: Tensor
    doc_prior_B: Tensor
    rows_B: Tensor
    columns_B: Tensor
    tokens_B: Tensor
    pairs_B: Tensor

    def loss(self, tokens: Tensor | float | None = None, pairs: Tensor | float | None = None) -> Tensor:
        """The scalar loss, divided by these counts of the step; by default by the counts of this batch."""
        tokens = self.tokens_B.sum().clamp(min=1) if tokens is None else tokens
        pairs = self.pairs_B.sum().clamp(min=1) if pairs is None else pairs
        by_token, by_pair = self.lm_B + self.doc_prior_B, self.rows_B + self.columns_B
        return by_token.sum() / tokens + by_pair.sum() / (2 * pairs)


def positive_only(
    scores_BN: Tensor,
    positive_index_B: Tensor,
    logp_BT: Tensor,
    token_mask_BT: Tensor,
    answer_mask_BT: Tensor,
    *,
    positive_mask_BN: Tensor | None = None,
    candidate_mask_BN: Tensor | None = None,
) -> PositiveOnly:
    """The loss of the DALM toolkit: the positive passage alone, and no sum over passages.

    loss = mean over all tokens of -log P(token) - (answer tokens / all tokens) * l[i, pos]
           + (InfoNCE over rows + InfoNCE over columns) / 2
    The generator's log-probabilities and the scores are in different terms, so the generator has no influence on the
    retriever.

    Args:
        scores_BN: retriever scores, already divided by the temperature.
        positive_index_B: the column of the passage that is in each query's prompt (int64).
        logp_BT: log-probability of every token of the sequence with that passage.
        token_mask_BT: True at every token of prompt and answer.
        answer_mask_BT: True at the answer's tokens.
        positive_mask_BN: all known positives, by default only `positive_index_B`. InfoNCE counts each of them as a
            pair, and none as a negative.
        candidate_mask_BN: True where the passage is in the pool; None for all.

    Returns:
        `PositiveOnly`, whose terms are not reduced; `.loss()` normalises within the batch.

    Source: the marginalised loss of DALM's `train_rage2e` (github.com/arcee-ai/DALM), which adds the
    positive's log prior to each answer token and takes the mean over all tokens.

    Example:
        >>> scores_BN, first_column_B = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> logp_BT = torch.tensor([[-1.0, -2.0, -3.0]])  # two tokens of the prompt, one of the answer
        >>> token_mask_BT, answer_mask_BT = torch.ones(1, 3).bool(), torch.tensor([[False, False, True]])
        >>> positive_only(scores_BN, first_column_B, logp_BT, token_mask_BT, answer_mask_BT).loss()
        tensor(2.1058)
    """
    assert logp_BT.shape == token_mask_BT.shape == answer_mask_BT.shape, (logp_BT.shape, token_mask_BT.shape)
    index_B1 = positive_index_B[:, None]
    if positive_mask_BN is None:
        positive_mask_BN = torch.zeros_like(scores_BN, dtype=torch.bool).scatter(1, index_B1, True)
    l_B = masked_log_softmax(scores_BN, candidate_mask_BN).gather(1, index_B1)[:, 0]
    token_mask_BT = token_mask_BT.bool()
    pair_BN = positive_mask_BN.bool()
    return PositiveOnly(
        lm_B=-torch.where(token_mask_BT, wide(logp_BT), 0.0).sum(1),
        doc_prior_B=-(answer_mask_BT.bool() & token_mask_BT).sum(1) * l_B,
        rows_B=infonce(scores_BN, pair_BN, candidate_mask_BN),
        columns_B=infonce_columns(scores_BN, pair_BN, candidate_mask_BN),
        tokens_B=token_mask_BT.sum(1),
        pairs_B=(pair_BN if candidate_mask_BN is None else pair_BN & candidate_mask_BN.bool()).sum(1),
    )
