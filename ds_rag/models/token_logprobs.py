"""Log-probabilities of given tokens from hidden states, computing the logits in chunks.

Shape legend: U places, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 1 << 27  # bytes of logits that exist at once, in float32
KEEP_BYTES = float(1 << 28)  # bytes of logits kept for the backward pass; larger ones are recomputed there


def target_logprobs(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden_UD: torch.Tensor,
    target_U: torch.Tensor,
    vocabulary: int,
    keep_bytes: float = KEEP_BYTES,
) -> torch.Tensor:
    """(U,) log P(target_U) under `head(hidden)`, logits (U, V), in float32 or wider.

    keep_bytes: logits that take more than this are recomputed in the backward pass, chunk by chunk. Values and
    gradients equal those of cross-entropy over all logits at once.
    """
    rows = max(1, CHUNK_BYTES // (4 * vocabulary))
    again = hidden_UD.requires_grad and len(hidden_UD) * vocabulary * 4 > keep_bytes

    def chunk(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = head(hidden)
        if torch.is_grad_enabled():
            return LogProb.apply(logits, targets)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return -F.cross_entropy(logits.to(wide), targets, reduction="none")  # one pass over the logits

    parts = []
    for start in range(0, len(hidden_UD), rows):
        piece = hidden_UD[start : start + rows], target_U[start : start + rows]
        if again:
            parts.append(checkpoint(chunk, *piece, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(chunk(*piece))
    return torch.cat(parts)


class LogProb(torch.autograd.Function):
    """log softmax(logits) at one token of each row. Keeps the logits as they are, not a second, wider copy."""

    @staticmethod
    def forward(ctx: Any, logits_UV: torch.Tensor, target_U: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(logits_UV.dtype, torch.float32)
        lse_U = torch.logsumexp(logits_UV.to(wide), 1)
        ctx.save_for_backward(logits_UV, target_U, lse_U)
        return logits_UV.gather(1, target_U[:, None])[:, 0].to(wide) - lse_U

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        logits_UV, target_U, lse_U = ctx.saved_tensors
        (grad_U,) = grads
        softmax_UV = (logits_UV - lse_U[:, None]).exp_()  # of the wider dtype
        out_UV = softmax_UV.mul_(-grad_U[:, None])
        out_UV.scatter_add_(1, target_U[:, None], grad_U[:, None].to(out_UV.dtype))
        return out_UV.to(logits_UV.dtype), None
