"""From token states to one embedding. B texts, T tokens, D embedding.

Every pooler takes hidden_BTD and mask_BT (1 or True at real tokens, padding on either side) and returns
emb_BD in the dtype of hidden_BTD, not normalised. States at padding may hold anything, NaN too. A text
without a token gives zeros.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _pick(hidden_BTD: Tensor, mask_BT: Tensor, index_B: Tensor) -> Tensor:
    emb_BD = hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), index_B]
    return torch.where(mask_BT.bool().any(1, keepdim=True), emb_BD, 0.0)


def cls(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The first real token's state: token 0, or the first after left padding."""
    return _pick(hidden_BTD, mask_BT, mask_BT.int().argmax(1))


def last(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The last real token's state, for decoders; found by position, so the padding may be on either side."""
    return _pick(hidden_BTD, mask_BT, mask_BT.shape[1] - 1 - mask_BT.int().flip(1).argmax(1))


def mean(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean of the real tokens' states, summed in at least float32."""
    wide = torch.promote_types(hidden_BTD.dtype, torch.float32)
    sum_BD = torch.where(mask_BT.bool()[:, :, None], hidden_BTD.to(wide), 0.0).sum(1)
    return (sum_BD / mask_BT.bool().sum(1, keepdim=True).clamp(min=1)).to(hidden_BTD.dtype)


def maximum(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The greatest value of each dimension over the real tokens."""
    top_BD = hidden_BTD.masked_fill(~mask_BT.bool()[:, :, None], float("-inf")).amax(1)
    return torch.where(mask_BT.bool().any(1, keepdim=True), top_BD, 0.0)


POOLERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": cls,
    "mean": mean,
    "last": last,
    "max": maximum,
}
