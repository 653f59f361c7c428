"""Which rows can teach the retriever anything: those for which some passage makes the answer likelier.

Shapes: B queries, K candidate passages per query, T answer tokens. Masked elements and dtypes as in marginal.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds_rag.losses.marginal import answer_log_prob


def passage_gains(logp_BKT: Tensor, answer_mask_BT: Tensor, without_B: Tensor | None = None) -> Tensor:
    """`u_BK = mean_t (g_jt - g_0t)`: how much likelier passage j makes a token of the answer, in nats; no gradient.

    Args:
        logp_BKT: `g`, the generator's log-probability of each answer token given each candidate.
        answer_mask_BT: True at the answer's tokens.
        without_B: `mean_t g_0t`, the mean log-probability of the answer's tokens without any passage. None: 0, so that
            only differences between the passages of one query have a meaning.

    Example:
        >>> logp_BKT = torch.tensor([[[-0.5, -1.5], [-2.0, -4.0]]])  # one query, two passages, two tokens
        >>> passage_gains(logp_BKT, torch.ones(1, 2, dtype=torch.bool), torch.tensor([-2.5]))
        tensor([[ 1.5000, -0.5000]])
    """
    mean_BK = answer_log_prob(logp_BKT.detach(), answer_mask_BT, answer_logprob="mean")
    return mean_BK if without_B is None else mean_BK - without_B.to(mean_BK)[:, None]


def passes_gate(gains_BK: Tensor, gain: float | None = None, margin: float | None = None) -> Tensor:
    """(B,) bool: the queries whose best passage gains at least `gain`, and at least `margin` more than the second best.

    gain, margin: in nats per answer token; None: not asked for. With one candidate there is no second, so the margin
    holds. A gain that is not a number passes, so that the step is recognised as not finite.

    Example:
        >>> passes_gate(torch.tensor([[1.5, -0.5], [0.4, 0.3], [2.0, 1.9]]), gain=1.2, margin=0.5)
        tensor([ True, False, False])
    """
    best_BK = gains_BK.sort(-1, descending=True).values
    passes_B = torch.ones_like(best_BK[:, 0], dtype=torch.bool)
    if gain is not None:
        passes_B &= ~(best_BK[:, 0] < gain)
    if margin is not None and best_BK.shape[1] > 1:
        passes_B &= ~(best_BK[:, 0] - best_BK[:, 1] < margin)
    return passes_B
