"""Losses in which the generator teaches the retriever, and the reader loss that trains the generator.

Shapes: B queries, K candidate passages per query, T answer tokens.
For `l`, `g`, `G`, `p`, `r`, and for how dtypes, masked elements and padding rows are handled, see marginal.py.
`emdr2`, `pdist` and `replug_lsr` detach the generator: only the scores get a gradient. Add `reader_loss` to train the
generator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds_rag.losses.marginal import (
    Temper,
    answer_log_prob,
    drop_padding,
    log_prior,
    masked_log_softmax,
    posterior,
    rag_token,
)
from ds_rag.runtime.errors import UserError, choose


def emdr2(
    scores_BK: Tensor,
    logp_BKT: Tensor,
    answer_mask_BT: Tensor,
    *,
    candidate_mask_BK: Tensor | None = None,
    log_prior_BK: Tensor | None = None,
) -> Tensor:
    """`-sum_t log sum_j p_j sg P(y_t | x, z_j, y_<t)`, with the generator detached (sg: stop gradient).

    Gradient with respect to the scores: `sum_t (p - r_t)`, before the division below.
    Arguments as in `marginal.rag_sequence`.

    Returns:
        loss_B, nats *summed* over the answer's tokens: divide by the number of answer tokens of the full step.

    Source: Singh et al. 2021, arXiv:2106.05346; for each token separately, as in Atlas, arXiv:2208.03299.

    Example:
        >>> scores_BK = torch.tensor([[1.0, 0.0]])  # one query, two passages
        >>> logp_BKT = torch.tensor([[[0.8, 0.5], [0.1, 0.2]]]).log()  # an answer of two tokens
        >>> answer_mask_BT = torch.ones(1, 2, dtype=torch.bool)
        >>> emdr2(scores_BK, logp_BKT, answer_mask_BT)
        tensor([1.3606])
    """
    return rag_token(
        scores_BK,
        logp_BKT.detach(),
        answer_mask_BT,
        candidate_mask_BK=candidate_mask_BK,
        log_prior_BK=log_prior_BK,
    )


def _teacher(logp_BKT: Tensor, answer_mask_BT: Tensor, candidate_mask_BK: Tensor | None, temperature: float) -> Tensor:
    """`log q_BK = log softmax_j(mean token log-probability / temperature)`, without gradient."""
    if not temperature > 0:
        raise UserError("--target_temperature is a divisor", found=temperature, expected="> 0")
    mean_BK = answer_log_prob(
        logp_BKT.detach(), answer_mask_BT, candidate_mask_BK=candidate_mask_BK, answer_logprob="mean"
    )
    return masked_log_softmax(mean_BK / temperature, candidate_mask_BK)


def pdist(
    scores_BK: Tensor,
    logp_BKT: Tensor,
    answer_mask_BT: Tensor,
    *,
    candidate_mask_BK: Tensor | None = None,
    log_prior_BK: Tensor | None = None,
    target_temperature: float = 0.1,
) -> Tensor:
    """Perplexity distillation, `KL(q || p)` with `q = softmax_j(mean_t g / target_temperature)`.

    Gradient with respect to the scores: `p - q`. Arguments as in `marginal.rag_sequence`.

    Returns:
        loss_B, nats per query: take the mean over the queries of the step. (The code of Atlas divides by B * K, which
        makes the retriever's effective learning rate depend on K; this function does not.)

    Raises:
        UserError: `target_temperature` is not above 0.

    Source: Izacard et al. 2022, arXiv:2208.03299, section 2.2 (PDist).

    Example:
        >>> scores_BK = torch.tensor([[1.0, 0.0]])  # one query, two passages
        >>> logp_BKT = torch.tensor([[[0.8, 0.5], [0.1, 0.2]]]).log()  # an answer of two tokens
        >>> answer_mask_BT = torch.ones(1, 2, dtype=torch.bool)
        >>> pdist(scores_BK, logp_BKT, answer_mask_BT, target_temperature=1.0)
        tensor([0.0205])
    """
    l_BK = log_prior(scores_BK, candidate_mask_BK, log_prior_BK)
    log_q_BK = _teacher(logp_BKT, answer_mask_BT, candidate_mask_BK, target_temperature)
    kl_B = (log_q_BK.exp() * (log_q_BK - l_BK)).sum(-1)
    return drop_padding(kl_B, answer_mask_BT, candidate_mask_BK)


def replug_lsr(
    scores_BK: Tensor,
    logp_BKT: Tensor,
    answer_mask_BT: Tensor,
    *,
    candidate_mask_BK: Tensor | None = None,
    target_temperature: float = 0.1,
) -> Tensor:
    """LM-supervised retrieval, `KL(p || q)` with `q = softmax_j(mean_t g / target_temperature)`.

    Gradient with respect to the scores: `p (log p - log q - KL)`. Arguments as in `marginal.rag_sequence`.
    Deviation from the paper: in the softmax of q the paper has the *probability* of the answer divided by beta (here
    `target_temperature`); here it is the mean token log-probability, because probabilities near 0 would make q
    uniform. The direction of the divergence is that of the paper; code released for the paper has the other one.

    Returns:
        loss_B, nats per query: take the mean over the queries of the step.

    There is no argument `log_prior_BK`: KL(p || q) needs q wherever p has mass, but q is not defined on passages that
    the generator has not scored.

    Raises:
        UserError: `target_temperature` is not above 0.

    Source: Shi et al. 2023, arXiv:2301.12652, section 4.

    Example:
        >>> scores_BK = torch.tensor([[1.0, 0.0]])  # one query, two passages
        >>> logp_BKT = torch.tensor([[[0.8, 0.5], [0.1, 0.2]]]).log()  # an answer of two tokens
        >>> answer_mask_BT = torch.ones(1, 2, dtype=torch.bool)
        >>> replug_lsr(scores_BK, logp_BKT, answer_mask_BT, target_temperature=1.0)
        tensor([0.0224])
    """
    l_BK = log_prior(scores_BK, candidate_mask_BK)
    log_q_BK = _teacher(logp_BKT, answer_mask_BT, candidate_mask_BK, target_temperature)
    kl_B = (l_BK.exp() * (l_BK - log_q_BK)).sum(-1)
    return drop_padding(kl_B, answer_mask_BT, candidate_mask_BK)


READER_LOSSES = {"prior": "weights p", "posterior": "weights r", "none": "no reader loss"}


def reader_loss(
    scores_BK: Tensor,
    logp_BKT: Tensor,
    answer_mask_BT: Tensor,
    *,
    kind: str = "prior",
    candidate_mask_BK: Tensor | None = None,
    log_prior_BK: Tensor | None = None,
    answer_logprob: str | Temper = "sum",
) -> Tensor:
    """`-sum_j sg(w_j) G_j`: the weighted cross-entropy of the answer. Only the generator gets a gradient.

    Args:
        kind: "prior" (w = p), "posterior" (w = r; its gradient is that of `rag_sequence`), "none" (zeros).
        The other arguments as in `marginal.rag_sequence`.

    Returns:
        loss_B, nats per query.

    Raises:
        UserError: unknown `kind` or `answer_logprob`.

    Source: the loss of the language model in Izacard et al. 2022, arXiv:2208.03299, section 2.2.

    Example:
        >>> scores_BK = torch.tensor([[1.0, 0.0]])  # one query, two passages
        >>> logp_BKT = torch.tensor([[[0.8, 0.5], [0.1, 0.2]]]).log()  # an answer of two tokens
        >>> answer_mask_BT = torch.ones(1, 2, dtype=torch.bool)
        >>> reader_loss(scores_BK, logp_BKT, answer_mask_BT)  # weights 0.731 and 0.269, without gradient
        tensor([1.7220])
    """
    choose(READER_LOSSES, kind, "--reader_loss")
    G_BK = answer_log_prob(logp_BKT, answer_mask_BT, candidate_mask_BK=candidate_mask_BK, answer_logprob=answer_logprob)
    if kind == "none":
        return torch.zeros_like(G_BK[:, 0])
    if kind == "prior":
        w_BK = log_prior(scores_BK, candidate_mask_BK, log_prior_BK).exp()
    else:
        w_BK = posterior(
            scores_BK,
            logp_BKT,
            answer_mask_BT,
            candidate_mask_BK=candidate_mask_BK,
            log_prior_BK=log_prior_BK,
            answer_logprob=answer_logprob,
        )
    assert w_BK.shape == G_BK.shape, (w_BK.shape, G_BK.shape)
    return drop_padding(-(w_BK.detach() * G_BK).sum(-1), answer_mask_BT, candidate_mask_BK)
