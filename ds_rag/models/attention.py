"""Attention over the shared-prefix layout (prefix.py), for every model that takes it from transformers' registry.

A prefix attends to itself; a segment to its prefix and to itself. Neither a mask over the whole row nor a copy of
the keys for every cell is made. `install` registers this beside the model's own attention, which it leaves to the
calls that bring no layout (generation, plain sequences).

Two ways to compute the same: `FlashParts` on the CPU (three calls of torch's flash kernel, joined by their
log-sum-exps, nothing saved but what attention has to save), and `masked_parts` everywhere, with dropout, soft caps
and any device.

Shape legend: T tokens of the row, R prefixes of P tokens, G blocks of n segments of S tokens, L query or key tokens,
H heads, D dimensions of a head.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ds_rag.models.prefix import SharedCells

NAME = "shared_prefix"
LAYOUT = "shared_prefix"  # the keyword under which a model hands the layout down to its layers
BLOCKED = -1e9  # added to a score that must not count: finite, so that a row of them makes no NaN


def install(lm: Any) -> None:
    """From now on the model's attention accepts a layout; without one it does what it did."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    own = lm.config.get_text_config()._attn_implementation
    if own.startswith(NAME):
        return
    name = f"{NAME}_{own}"
    AttentionInterface.register(name, functools.partial(attention, own=own))
    if own in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    lm.set_attn_implementation(name)


def call(model: Any, cells: SharedCells) -> Any:
    """The last hidden states (T, D) of a base model over the layout."""
    # A mask of four dimensions is handed down as it is: this one only keeps the model from making its own.
    no_mask = torch.zeros(1, 1, 1, 1, device=cells.ids_T.device)
    return model(
        input_ids=cells.ids_T[None],
        position_ids=cells.positions_T[None],
        attention_mask=no_mask,
        use_cache=False,
        **{LAYOUT: cells},
    ).last_hidden_state[0]


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    own: str,
    **options: Any,
) -> tuple[torch.Tensor, Any]:
    """What transformers calls in every layer: q, k, v (1, H, T, D) -> ((1, T, H, D), None)."""
    cells: SharedCells | None = options.pop(LAYOUT, None)
    if cells is None:
        return own_attention(module, own)(module, query, key, value, attention_mask, **options)
    if options.get("s_aux") is not None or options.get("position_bias") is not None:
        raise ValueError("attention with sinks or a position bias")  # `share_prefixes` turns this into its message
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    window, softcap, dropout = (options.get(name) for name in ("sliding_window", "softcap", "dropout"))
    cells.masks["windows seen"] = cells.masks.get("windows seen", False) or bool(window)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, H, D)
    if groups := q.shape[1] // k.shape[1] - 1:
        k, v = (x.repeat_interleave(groups + 1, dim=1) for x in (k, v))
    if q.device.type in ("cpu", "meta") and not softcap and not dropout:
        out_THD = FlashParts.apply(q, k, v, cells, scale, window)
    else:
        out_THD = masked_parts(q, k, v, cells, scale, window, softcap, dropout or 0.0)
    return out_THD[None], None


def own_attention(module: Any, own: str) -> Callable[..., Any]:
    """The function that transformers itself would have called."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(own, eager)


def masks(cells: SharedCells, window: int | None, dtype: torch.dtype) -> dict[str, torch.Tensor | None]:
    """What to add to the scores of each part, made once for all layers of a kind; None: nothing but causality.

    prefix (P, P) and own (S, S) are then causal in themselves; before (G, 1, n * S or 1, P) is of segments towards
    their prefix: its padding, and what lies beyond a sliding window.
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

    def add(allowed: torch.Tensor) -> torch.Tensor:
        return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill(~allowed, BLOCKED)

    def causal(length: int) -> torch.Tensor | None:
        if window is None or window >= length:
            return None
        place = torch.arange(length, device=device)
        back = place[:, None] - place[None, :]
        return add((back >= 0) & (back < window))

    if window is None and cells.prefixes.full:
        return dict.fromkeys(("prefix", "own", "before"))
    sizes_G = torch.tensor(cells.prefixes.lengths, device=device)[cells.prefix_G]
    key_P = torch.arange(P, device=device)
    allowed = key_P[None, None, :] < sizes_G[:, None, None]  # (G, 1, P)
    if window is not None:
        offset_L = torch.arange(S, device=device).repeat(n)
        allowed = allowed & (sizes_G[:, None, None] + offset_L[None, :, None] - key_P[None, None, :] < window)
    before = add(allowed)[:, None].expand(-1, -1, n * S, -1)
    return {"prefix": causal(P), "own": causal(S), "before": before}


def heads_first(x: torch.Tensor) -> torch.Tensor:
    """(rows, L, H, D) -> (rows, H, L, D), a view."""
    return x.transpose(1, 2)


class FlashParts(torch.autograd.Function):
    """softmax(q k' * scale) v of every token, by the CPU's flash kernel: prefixes, segments to their prefix, segments
    to themselves.

    The last two are one softmax: with their log-sum-exps a, b and c = log(e^a + e^b) the output is
    e^(a-c) out_a + e^(b-c) out_b. A flash backward needs of the softmax only the output and the log-sum-exp, so each
    part's backward is given the joint ones and returns its share of the exact gradient (as ring attention does,
    Liu et al. 2023, arXiv:2310.01889).
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
        parts = Parts(cells, q, k, v)
        mask = ctx.layout[2]
        out_0, lse_0 = flash(parts.prefix, mask["prefix"], scale, True)
        done = [cells.prefixes.put(heads_first(out_0))]
        lses = [lse_0]
        if cells.segments.rows:
            out_1, lse_1 = flash(parts.before, mask["before"], scale, False)
            out_2, lse_2 = flash(parts.own, mask["own"], scale, True)
            out_1, lse_1 = parts.by_segment(out_1), parts.by_segment(lse_1[..., None])[..., 0]
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
        parts, gone = Parts(cells, q, k, v), Parts(cells, grads[0], out_THD, clean=True)
        of_prefix = flash_backward(gone.prefix, parts.prefix, lses[0], mask["prefix"], scale, True)
        split = cells.prefix_tokens
        found = [x.new_empty(x.shape) for x in (q, k, v)]
        if cells.segments.rows:
            lse = lses[1]
            before = flash_backward(
                gone.before, parts.before, parts.by_block(lse[..., None])[..., 0], mask["before"], scale, False
            )
            own = flash_backward(gone.own, parts.own, lse, mask["own"], scale, True)
            own[0] += parts.by_segment(before[0])
            for total, share in zip(of_prefix[1:], before[1:], strict=True):
                parts.add_blocks(total, share)
            for whole, part in zip(found, own, strict=True):
                whole[split:] = cells.segments.put(heads_first(part))
        for whole, part in zip(found, of_prefix, strict=True):
            whole[:split] = cells.prefixes.put(heads_first(part))
        return (*found, None, None, None)


class Parts:
    """Tensors (T, H, D) cut into the three attentions: the first is the query's side, the others the keys'.

    For the backward: the first is the output's gradient, the second the output, both on the query's side, and `clean`:
    padding sends no gradient.
    """

    def __init__(self, cells: SharedCells, *tensors: torch.Tensor, clean: bool = False):
        split = cells.prefix_tokens
        self.n, self.prefix_G = cells.block, cells.prefix_G
        self.whole = cells.one_block_each
        self.prefix: list[torch.Tensor] = [heads_first(cells.prefixes.take(x[:split], clean)) for x in tensors]
        self.own: list[torch.Tensor] = []
        self.before: list[torch.Tensor] = []
        if not cells.segments.rows:
            return
        segments = [cells.segments.take(x[split:], clean) for x in tensors]  # (G * n, S, H, D)
        self.own = [heads_first(x) for x in segments]
        by_query = [heads_first(x.reshape(-1, self.n * x.shape[1], *x.shape[2:])) for x in segments]
        self.before = by_query if len(tensors) == 2 else [by_query[0], *(self.copy(x) for x in self.prefix[1:])]

    def copy(self, x_RHPD: torch.Tensor) -> torch.Tensor:
        return x_RHPD if self.whole else x_RHPD.index_select(0, self.prefix_G)

    def add_blocks(self, total_RHPD: torch.Tensor, share_GHPD: torch.Tensor) -> None:
        """Adjoint of `copy`, in place."""
        if self.whole:
            total_RHPD += share_GHPD
        else:
            total_RHPD.index_add_(0, self.prefix_G, share_GHPD)

    def by_segment(self, x: torch.Tensor) -> torch.Tensor:
        """(G, H, n * S, D) -> (G * n, H, S, D)"""
        G, H, L, D = x.shape
        return x.reshape(G, H, self.n, L // self.n, D).transpose(1, 2).reshape(G * self.n, H, L // self.n, D)

    def by_block(self, x: torch.Tensor) -> torch.Tensor:
        """(G * n, H, S, D) -> (G, H, n * S, D)"""
        rows, H, S, D = x.shape
        return x.reshape(rows // self.n, self.n, H, S, D).transpose(1, 2).reshape(rows // self.n, H, self.n * S, D)


def flash(
    qkv: Sequence[torch.Tensor], mask: torch.Tensor | None, scale: float, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, H, L, D) outputs and (rows, H, L) log-sum-exps of torch's CPU flash kernel."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(*qkv, 0.0, causal and mask is None, attn_mask=mask, scale=scale)


def flash_backward(
    gone: list[torch.Tensor],
    qkv: list[torch.Tensor],
    lse: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    causal: bool,
) -> list[torch.Tensor]:
    """Gradients of q, k, v; `gone`: the output's gradient and the output."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    grad, out = gone
    return list(kernel(grad, *qkv, out, lse, 0.0, causal and mask is None, attn_mask=mask, scale=scale))


def masked_parts(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cells: SharedCells,
    scale: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> torch.Tensor:
    """The same by two masked attentions in plain autograd: prefixes, and blocks towards [their prefix | themselves]."""
    parts = Parts(cells, q, k, v)
    mask = joint_masks(cells, window, q.dtype)
    out = [cells.prefixes.put(heads_first(attend(parts.prefix, mask["prefix"], scale, softcap, dropout)))]
    if cells.segments.rows:
        q_block, k_before, v_before = parts.before
        k_own, v_own = (parts.by_block(x) for x in parts.own[1:])
        keys, values = torch.cat([k_before, k_own], 2), torch.cat([v_before, v_own], 2)
        found = attend([q_block, keys, values], mask["block"], scale, softcap, dropout)
        out.append(cells.segments.put(heads_first(parts.by_segment(found))))
    return torch.cat(out)


def attend(
    qkv: Sequence[torch.Tensor], mask: torch.Tensor, scale: float, softcap: float | None, dropout: float
) -> torch.Tensor:
    """Attention with an additive mask; scores s become softcap * tanh(s / softcap) where there is a cap."""
    q, k, v = qkv
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * (scale / softcap)) + mask
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.to(wide).softmax(-1).to(q.dtype)
    return F.dropout(weights, dropout) @ v


def joint_masks(cells: SharedCells, window: int | None, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """prefix (P, P), and block (G, 1, n * S, P + n * S): a segment's prefix and its own past."""
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
        zeros = {name: torch.zeros(m.shape, dtype=dtype, device=device) for name, m in made.items()}
        cells.masks[key] = {name: zeros[name].masked_fill(~m, BLOCKED) for name, m in made.items()}
    return cells.masks[key]
