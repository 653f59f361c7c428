"""The marginal objectives: the probability of the answer, summed over the retrieved passages.

Shapes: B queries, K candidate passages per query, T answer tokens.
Names: `l` is the retriever's log prior over the candidates, `p = exp(l)`, `g` the generator's token log-probabilities,
`G` their sum over the answer, `r` the posterior over the candidates given the answer. All values are in nats.

Half precision is computed in float32, float64 in float64. Masked elements of any input may have any value, even NaN:
they are replaced before any arithmetic, so values and gradients stay finite. A query without a candidate or without an
answer token is padding: its loss is 0 and its gradient is 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ds_rag.runtime.errors import choose


class Temper(NamedTuple):
    """How the log-probability of a full answer is made from those of its tokens: `weight * G / |y|^exponent`, with `G`
    their sum and `|y|` their number.

    exponent 0, weight 1 is the log of a probability, as in the paper; exponent 1, weight 1 the mean over the tokens.
    Between them a long answer counts for more than a short one, but not in proportion to its length.

    Example:
        >>> Temper(exponent=0.5, weight=2.0)(-6.0, 4)
        -6.0
    """

    exponent: float = 0.0
    weight: float = 1.0

    def __call__(self, sums: Any, counts: Any) -> Any:
        """sums: `G`; counts: `|y|`, 1 or more; numbers, arrays or tensors that broadcast."""
        return self.weight * (sums / counts**self.exponent)


ANSWER_LOGPROB = {"sum": Temper(0.0), "mean": Temper(1.0)}


def temper_of(answer_logprob: str | Temper) -> Temper:
    """The `Temper` of a name, or the one given. Raises UserError for an unknown name.

    Example:
        >>> temper_of("mean") == temper_of(Temper(exponent=1.0))
        True
    """
    if isinstance(answer_logprob, Temper):
        return answer_logprob
    return choose(ANSWER_LOGPROB, answer_logprob, "--answer_logprob")


def wide(x: Tensor) -> Tensor:
    """`x` in at least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def fill_value(x: Tensor) -> float:
    """The value that stands for log 0 at masked elements.

    It is finite, so that 0 * fill is 0 and fill - fill is not NaN, and half of the smallest number, so that adding a
    log-probability or subtracting a maximum cannot overflow.
    """
    return torch.finfo(x.dtype).min / 2


def masked_log_softmax(x_BK: Tensor, mask_BK: Tensor | None = None) -> Tensor:
    """Log-softmax over the last dimension, only over elements where the mask is True; the others are `fill_value`."""
    x_BK = wide(x_BK)
    if mask_BK is None:
        return torch.log_softmax(x_BK, -1)
    mask_BK = mask_BK.bool()
    out_BK = torch.log_softmax(torch.where(mask_BK, x_BK, fill_value(x_BK)), -1)
    return torch.where(mask_BK, out_BK, fill_value(x_BK))


def log_prior(scores_BK: Tensor, candidate_mask_BK: Tensor | None = None, log_prior_BK: Tensor | None = None) -> Tensor:
    """The retriever's log prior `l_BK`, in float32 or float64.

    Args:
        scores_BK: retriever scores, already divided by the temperature.
        candidate_mask_BK: True where the candidate counts; None for all.
        log_prior_BK: a log prior that is used instead of the log-softmax of `scores_BK`. If it is the log-softmax over
            the full pool, gathered at the candidates, a marginal loss exceeds that over the full pool by exactly
            -log(posterior mass of the candidates), and the scores of passages that the generator does not read still
            decrease.

    Example:
        >>> log_prior(torch.tensor([[1.0, 0.0, 5.0]]), torch.tensor([[True, True, False]])).exp()
        tensor([[0.7311, 0.2689, 0.0000]])
    """
    if log_prior_BK is None:
        return masked_log_softmax(scores_BK, candidate_mask_BK)
    assert log_prior_BK.shape == scores_BK.shape, (log_prior_BK.shape, scores_BK.shape)
    log_prior_BK = wide(log_prior_BK)
    if candidate_mask_BK is None:
        return log_prior_BK
    return torch.where(candidate_mask_BK.bool(), log_prior_BK, fill_value(log_prior_BK))


def token_logprobs(logp_BKT: Tensor, answer_mask_BT: Tensor, candidate_mask_BK: Tensor | None = None) -> Tensor:
    """`g_BKT` in float32 or float64, with 0 at every masked element."""
    B, K, T = logp_BKT.shape
    assert answer_mask_BT.shape == (B, T), (answer_mask_BT.shape, logp_BKT.shape)
    keep_BKT = answer_mask_BT.bool()[:, None, :]
    if candidate_mask_BK is not None:
        assert candidate_mask_BK.shape == (B, K), (candidate_mask_BK.shape, logp_BKT.shape)
        keep_BKT = keep_BKT & candidate_mask_BK.bool()[:, :, None]
    return torch.where(keep_BKT, wide(logp_BKT), 0.0)


def answer_log_prob(
    logp_BKT: Tensor,
    answer_mask_BT: Tensor,
    *,
    candidate_mask_BK: Tensor | None = None,
    answer_logprob: str | Temper = "sum",
) -> Tensor:
    """`G_BK`: log-probability of the full answer given each candidate; 0 at masked candidates.

    Args:
        logp_BKT: the generator's log-probability of each answer token.
        answer_mask_BT: True at the answer's tokens.
        candidate_mask_BK: True where the candidate counts; None for all.
        answer_logprob: "sum" over the tokens (the log of a probability, as in the paper), "mean" (so that for long
            answers the prior does not become negligible), or a `Temper`.

    Raises:
        UserError: unknown `answer_logprob`.

    Example:
        >>> logp_BKT = torch.tensor([[[-0.5, -1.0], [-2.0, -3.0]]])  # one query, two passages, two tokens
        >>> answer_log_prob(logp_BKT, torch.ones(1, 2, dtype=torch.bool))
        tensor([[-1.5000, -5.0000]])
    """
    temper = temper_of(answer_logprob)
    G_BK = token_logprobs(logp_BKT, answer_mask_BT, candidate_mask_BK).sum(-1)
    counts_B = answer_mask_BT.bool().sum(-1).clamp(min=1).to(G_BK.dtype)
    tempered_BK: Tensor = temper(G_BK, counts_B[:, None])
    return tempered_BK


def drop_padding(loss_B: Tensor, answer_mask_BT: Tensor, candidate_mask_BK: Tensor | None) -> Tensor:
    """`loss_B` with 0 for the queries that have no answer token or no candidate."""
    real_B = answer_mask_BT.bool().any(-1)
    if candidate_mask_BK is not None:
        real_B = real_B & candidate_mask_BK.bool().any(-1)
    return torch.where(real_B, loss_B, 0.0)


def posterior(
    scores_BK: Tensor,
    logp_BKT: Tensor,
    answer_mask_BT: Tensor,
    *,
    candidate_mask_BK: Tensor | None = None,
    log_prior_BK: Tensor | None = None,
    answer_logprob: str | Temper = "sum",
) -> Tensor:
    """`r_BK = softmax_j(l + G)`: the probability that candidate j explains the answer. Each row sums to 1; masked
    candidates have 0. Arguments as in `rag_sequence`.

    Example:
        >>> scores_BK = torch.tensor([[1.0, 0.0]])  # one query, two passages
        >>> logp_BKT = torch.tensor([[[0.8, 0.5], [0.1, 0.2]]]).log()  # an answer of two tokens
        >>> answer_mask_BT = torch.ones(1, 2, dtype=torch.bool)
        >>> posterior(scores_BK, logp_BKT, answer_mask_BT)
        tensor([[0.9819, 0.0181]])
    """
    l_BK = log_prior(scores_BK, candidate_mask_BK, log_prior_BK)
    G_BK = answer_log_prob(logp_BKT, answer_mask_BT, candidate_mask_BK=candidate_mask_BK, answer_logprob=answer_logprob)
    return masked_log_softmax(l_BK + G_BK, candidate_mask_BK).exp()


def entropy(p_BK: Tensor) -> Tensor:
    """(B,) entropy in nats of each row of probabilities; 0 log 0 is 0.

    Example:
        >>> entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        tensor([0.6931, 0.0000])
    """
    return torch.special.entr(p_BK).sum(-1)


def rag_sequence(
    scores_BK: Tensor,
    logp_BKT: Tensor,
    answer_mask_BT: Tensor,
    *,
    candidate_mask_BK: Tensor | None = None,
    log_prior_BK: Tensor | None = None,
    answer_logprob: str | Temper = "sum",
) -> Tensor:
    """`-log sum_j P(z_j | x) P(y | x, z_j)`: one passage explains the full answer. With a `Temper` of exponent a and
    weight b it is `-log sum_j exp(l_j + b G_j / |y|^a)`.

    Gradients: with respect to the scores `p - r`, with respect to every token log-probability of candidate j `-r_j`,
    times `b / |y|^a`; `r` is the tempered posterior.

    Args:
        scores_BK: retriever scores, already divided by the temperature; the log-softmax is taken here.
        logp_BKT: the generator's log-probability of each answer token given each candidate.
        answer_mask_BT: True at the answer's tokens.
        candidate_mask_BK: True where the candidate counts; None for all.
        log_prior_BK: see `log_prior`; `scores_BK` then only gives the shape.
        answer_logprob: "sum" (the paper), "mean" or a `Temper`, see `answer_log_prob`.

    Returns:
        loss_B, nats per query, not reduced; take the mean over the queries of the optimizer step.

    Raises:
        UserError: unknown `answer_logprob`.

    Source: Lewis et al. 2020, arXiv:2005.11401, section 2.1 (RAG-Sequence).

    Example:
        >>> scores_BK = torch.tensor([[1.0, 0.0]])  # one query, two passages
        >>> logp_BKT = torch.tensor([[[0.8, 0.5], [0.1, 0.2]]]).log()  # an answer of two tokens
        >>> answer_mask_BT = torch.ones(1, 2, dtype=torch.bool)
        >>> rag_sequence(scores_BK, logp_BKT, answer_mask_BT)  # -log(0.731 * 0.4 + 0.269 * 0.02)
        tensor([1.2113])
    """
    l_BK = log_prior(scores_BK, candidate_mask_BK, log_prior_BK)
    G_BK = answer_log_prob(logp_BKT, answer_mask_BT, candidate_mask_BK=candidate_mask_BK, answer_logprob=answer_logprob)
    assert l_BK.shape == G_BK.shape, (l_BK.shape, G_BK.shape)
    return drop_padding(-torch.logsumexp(l_BK + G_BK, -1), answer_mask_BT, candidate_mask_BK)


def rag_token(
    scores_BK: Tensor,
    logp_BKT: Tensor,
    answer_mask_BT: Tensor,
    *,
    candidate_mask_BK: Tensor | None = None,
    log_prior_BK: Tensor | None = None,
    answer_weight: float = 1.0,
) -> Tensor:
    """`-sum_t log sum_j P(z_j | x) P(y_t | x, z_j, y_<t)`: each token may be explained by another passage. With an
    `answer_weight` of b it is `-sum_t log sum_j exp(l_j + b g_jt)`.

    Gradients: with respect to the scores `sum_t (p - r_t)`, with respect to a token log-probability `-b r_jt`, where
    `r_t = softmax_j(l + b g_t)` is the posterior given only that token.
    Arguments and result as in `rag_sequence`, but without `answer_logprob`: there is no log-probability of a full
    answer that could be averaged. Each token is an answer of length 1, so an exponent would change nothing.

    Source: Lewis et al. 2020, arXiv:2005.11401, section 2.1 (RAG-Token).

    Example:
        >>> scores_BK = torch.tensor([[1.0, 0.0]])  # one query, two passages
        >>> logp_BKT = torch.tensor([[[0.8, 0.5], [0.1, 0.2]]]).log()  # an answer of two tokens
        >>> answer_mask_BT = torch.ones(1, 2, dtype=torch.bool)
        >>> rag_token(scores_BK, logp_BKT, answer_mask_BT)
        tensor([1.3606])
    """
    l_BK = log_prior(scores_BK, candidate_mask_BK, log_prior_BK)
    g_BKT = token_logprobs(logp_BKT, answer_mask_BT, candidate_mask_BK)
    assert l_BK.shape == g_BKT.shape[:2], (l_BK.shape, g_BKT.shape)
    log_mix_BT = torch.logsumexp(l_BK[:, :, None] + answer_weight * g_BKT, 1)
    loss_B = -torch.where(answer_mask_BT.bool(), log_mix_BT, 0.0).sum(-1)
    return drop_padding(loss_B, answer_mask_BT, candidate_mask_BK)
