"""Attention over the shared-prefix layout by torch's flash kernel for CPUs: no mask over the full row, and nothing is
saved for the backward but q, k, v, output and log-sum-exp.

Shape legend: T tokens of the row, P tokens of a prefix, G blocks of n segments of S tokens, H heads, D dimensions of a
head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ds_rag.models.shared_prefix.blocks import Cut, additive, heads_first
from ds_rag.models.shared_prefix.layout import SharedCells


class FlashParts(torch.autograd.Function):
    """softmax(q k' * scale) v of every token, q (T, H, D), k and v (T, H or fewer, D), in three calls: prefixes to
    themselves, segments to their prefix, segments to themselves.

    The last two are one softmax: with their log-sum-exps a, b and c = log(e^a + e^b) the output is
    e^(a-c) out_a + e^(b-c) out_b. The backward of flash attention needs only output and log-sum-exp of the softmax, so
    each part's backward gets the joint ones and returns its part of the exact gradient (as ring attention does, Liu et
    al. 2023, arXiv:2310.01889).
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cells: SharedCells,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        ctx.layout = cells, scale, masks(cells, window, q.dtype)
        cut = Cut(cells, [q], [k, v])
        mask = ctx.layout[2]
        out_0, lse_0 = flash(cut.prefix, mask["prefix"], scale, True)
        done = [cells.prefixes.put(heads_first(out_0))]
        lses = [lse_0]
        if cells.segments.rows:
            out_1, lse_1 = flash(cut.before, mask["before"], scale, False)
            out_2, lse_2 = flash(cut.own, mask["own"], scale, True)
            out_1, lse_1 = cut.by_segment(out_1), cut.by_segment(lse_1[..., None])[..., 0]
            lse = torch.logaddexp(lse_1, lse_2)
            out = out_1.mul((lse_1 - lse).exp()[..., None].to(out_1.dtype))
            out = out.addcmul(out_2, (lse_2 - lse).exp()[..., None].to(out_2.dtype))
            done.append(cells.segments.put(heads_first(out)))
            lses.append(lse)
        out_THD = torch.cat(done)
        ctx.save_for_backward(q, k, v, out_THD, *lses)
        return out_THD

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        q, k, v, out_THD, *lses = ctx.saved_tensors
        cells, scale, mask = ctx.layout
        cut, outputs = Cut(cells, [q], [k, v]), Cut(cells, [grads[0], out_THD], clean=True)
        of_prefix = flash_backward(outputs.prefix, cut.prefix, lses[0], mask["prefix"], scale, True)
        split = cells.prefix_tokens
        found = [x.new_empty(x.shape) for x in (q, k, v)]
        if cells.segments.rows:
            lse = lses[1]
            before = flash_backward(
                outputs.before, cut.before, cut.by_block(lse[..., None])[..., 0], mask["before"], scale, False
            )
            own = flash_backward(outputs.own, cut.own, lse, mask["own"], scale, True)
            own[0] += cut.by_segment(before[0])
            for total, share in zip(of_prefix[1:], before[1:], strict=True):
                cut.add_blocks(total, share)
            for whole, part in zip(found, [own[0], *map(cut.gather, own[1:])], strict=True):
                whole[split:] = cells.segments.put(heads_first(part))
        for whole, part in zip(found, [of_prefix[0], *map(cut.gather, of_prefix[1:])], strict=True):
            whole[:split] = cells.prefixes.put(heads_first(part))
        return (*found, None, None, None)


def masks(cells: SharedCells, window: int | None, dtype: torch.dtype) -> dict[str, torch.Tensor | None]:
    """Additive masks for the scores of each part, made once for all layers of a kind; None: only causal.

    prefix (P, P) and own (S, S) include causality; before (G, 1, n * S or 1, P) masks the prefix of a segment: its
    padding, and tokens outside a sliding window.
    """
    P, S = cells.prefixes.length, cells.segments.length
    if window is not None and window >= P + S:
        window = None
    if (window, dtype) not in cells.masks:
        cells.masks[window, dtype] = make_masks(cells, window, dtype)
    return cells.masks[window, dtype]


def make_masks(cells: SharedCells, window: int | None, dtype: torch.dtype) -> dict[str, torch.Tensor | None]:
    P, S, n = cells.prefixes.length, cells.segments.length, cells.block
    device = cells.ids_T.device

    def causal(length: int) -> torch.Tensor | None:
        if window is None or window >= length:
            return None
        place = torch.arange(length, device=device)
        back = place[:, None] - place[None, :]
        return additive((back >= 0) & (back < window), dtype)

    if window is None and cells.prefixes.full:
        return dict.fromkeys(("prefix", "own", "before"))
    sizes_G = torch.tensor(cells.prefixes.lengths, device=device)[cells.prefix_G]
    key_P = torch.arange(P, device=device)
    allowed = key_P[None, None, :] < sizes_G[:, None, None]  # (G, 1, P)
    if window is not None:
        offset_L = torch.arange(S, device=device).repeat(n)
        allowed = allowed & (sizes_G[:, None, None] + offset_L[None, :, None] - key_P[None, None, :] < window)
    before = additive(allowed, dtype)[:, None].expand(-1, -1, n * S, -1)
    return {"prefix": causal(P), "own": causal(S), "before": before}


def flash(
    qkv: Sequence[torch.Tensor], mask: torch.Tensor | None, scale: float, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, H, L, D) outputs and (rows, H, L) log-sum-exps of torch's CPU flash kernel."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(*qkv, 0.0, causal and mask is None, attn_mask=mask, scale=scale)


def flash_backward(
    outputs: list[torch.Tensor],
    qkv: list[torch.Tensor],
    lse: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    causal: bool,
) -> list[torch.Tensor]:
    """Gradients of q, k, v; `outputs`: the output's gradient and the output."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    grad, out = outputs
    return list(kernel(grad, *qkv, out, lse, 0.0, causal and mask is None, attn_mask=mask, scale=scale))
