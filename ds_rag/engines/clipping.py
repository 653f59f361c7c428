"""The clipping rule: by what both models' gradients are multiplied, given their joint norm."""

from __future__ import annotations


def shrink_to(max_norm: float, norm: float) -> float:
    """The factor, at most 1, under which gradients of norm `norm` have at most `max_norm`; max_norm 0: never clip.

    The norm is that of all parameters of both models together, so clipping keeps the direction of the joint gradient
    (as `torch.nn.utils.clip_grad_norm_` over all of them would). A norm that is not finite is not clipped: that step is
    skipped.
    """
    return max_norm / norm if 0 < max_norm < norm else 1.0
