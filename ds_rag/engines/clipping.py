"""The clipping rule: the factor by which the gradients of both models are multiplied, given their joint norm."""

from __future__ import annotations


def shrink_to(max_norm: float, norm: float) -> float:
    """The factor, at most 1, that brings gradients of norm `norm` down to `max_norm`. max_norm 0: never clip.

    `norm` is taken over all parameters of both models together, so clipping keeps the direction of the joint gradient,
    as `torch.nn.utils.clip_grad_norm_` over all of them would. For a norm that is not finite the factor is 1: that step
    is skipped.
    """
    return max_norm / norm if 0 < max_norm < norm else 1.0
