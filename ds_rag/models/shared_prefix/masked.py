"""Attention over the shared-prefix layout by two masked attentions, in plain autograd: any device, dropout, soft caps.

Shape legend: T tokens of the row, P tokens of a prefix, G blocks of n segments of S tokens, H heads, D dimensions of a
head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ds_rag.models.shared_prefix.blocks import Cut, additive, heads_first
from ds_rag.models.shared_prefix.layout import SharedCells


@dataclass(frozen=True)
class AttentionOptions:
    """How a layer turns products of queries and keys into weights.

    scale: times the products. window: a token sees itself and those less than so many before it; None: all before it.
    softcap: scores s become softcap * tanh(s / softcap). dropout: probability, of the weights.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    dropout: float = 0.0


def masked_parts(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cells: SharedCells, options: AttentionOptions
) -> torch.Tensor:
    """The output (T, H, D) of attention: prefixes attend to themselves, blocks to [their prefix | themselves].
    q, k, v: (T, H, D), of keys and values perhaps fewer heads."""
    cut = Cut(cells, [q], [k, v])
    mask = joint_masks(cells, options.window, q.dtype)
    out = [cells.prefixes.put(heads_first(attend(cut.prefix, mask["prefix"], options)))]
    if cells.segments.rows:
        q_block, k_before, v_before = cut.before
        k_own, v_own = (cut.by_block(x) for x in cut.own[1:])
        keys, values = torch.cat([k_before, k_own], 2), torch.cat([v_before, v_own], 2)
        found = attend([q_block, keys, values], mask["block"], options)
        out.append(cells.segments.put(heads_first(cut.by_segment(found))))
    return torch.cat(out)


def attend(qkv: Sequence[torch.Tensor], mask: torch.Tensor, options: AttentionOptions) -> torch.Tensor:
    """Attention with an additive mask."""
    q, k, v = qkv
    scale, softcap, dropout = options.scale, options.softcap, options.dropout
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * (scale / softcap)) + mask
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.to(wide).softmax(-1).to(q.dtype)
    return F.dropout(weights, dropout) @ v


def joint_masks(cells: SharedCells, window: int | None, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Additive masks: prefix (P, P), and block (G, 1, n * S, P + n * S), which allows a segment its prefix and its own
    past."""
    key = "joint", window, dtype
    if key not in cells.masks:
        P, S, n, device = cells.prefixes.length, cells.segments.length, cells.block, cells.ids_T.device
        reach = math.inf if window is None else window
        place_P, place_S = torch.arange(P, device=device), torch.arange(S, device=device)
        back_PP, back_SS = place_P[:, None] - place_P, place_S[:, None] - place_S
        prefix = (back_PP >= 0) & (back_PP < reach)
        own = torch.block_diag(*[((back_SS >= 0) & (back_SS < reach))] * n)
        sizes_G11 = torch.tensor(cells.prefixes.lengths, device=device)[cells.prefix_G][:, None, None]
        back_GLP = sizes_G11 + place_S.repeat(n)[None, :, None] - place_P
        before = (place_P < sizes_G11) & (back_GLP < reach)
        block = torch.cat([before, own.expand(len(sizes_G11), -1, -1)], -1)[:, None]
        made = {"prefix": prefix, "block": block}
        cells.masks[key] = {name: additive(m, dtype) for name, m in made.items()}
    return cells.masks[key]
