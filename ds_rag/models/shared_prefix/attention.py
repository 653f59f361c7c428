"""Attention over the shared-prefix layout (layout.py), for every model that gets its attention from transformers'
registry.

A prefix attends to itself; a segment to its prefix and to itself. Neither a mask over the full row nor a copy of the
keys for every cell is made. `install` registers this attention; calls without a layout (generation, plain sequences)
still use the model's own.

Three ways to compute the same: `FlashParts` on the CPU (flash_cpu.py), `unpadded_parts` there without a gradient
(unpadded_cpu.py), and `masked_parts` everywhere, with dropout, soft caps and any device (masked.py).

Shape legend: T tokens of the row, H heads, D dimensions of a head.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from ds_rag.models.shared_prefix.flash_cpu import FlashParts
from ds_rag.models.shared_prefix.layout import SharedCells
from ds_rag.models.shared_prefix.masked import AttentionOptions, masked_parts
from ds_rag.models.shared_prefix.unpadded_cpu import unpadded_parts

NAME = "shared_prefix"
LAYOUT = "shared_prefix"  # the keyword under which a model hands the layout down to its layers


def install(lm: Any) -> None:
    """Makes the model's attention accept a layout; without one it works as before."""
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
    # The model passes a mask of four dimensions on unchanged; this one only keeps it from making its own.
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
    """The function that transformers calls in every layer: q, k, v (1, H, T, D) -> ((1, T, H, D), None)."""
    cells: SharedCells | None = options.pop(LAYOUT, None)
    if cells is None:
        return own_attention(module, own)(module, query, key, value, attention_mask, **options)
    if options.get("s_aux") is not None or options.get("position_bias") is not None:
        raise ValueError("attention with sinks or a position bias")  # `share_prefixes` turns this into its message
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    window, softcap, dropout = (options.get(name) for name in ("sliding_window", "softcap", "dropout"))
    cells.masks["windows seen"] = cells.masks.get("windows seen", False) or bool(window)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, H, D)
    if cells.masked or q.device.type not in ("cpu", "meta") or softcap or dropout:
        out_THD = masked_parts(q, k, v, cells, AttentionOptions(scale, window, softcap, dropout or 0.0))
    elif scores_only(cells, window):
        out_THD = unpadded_parts(q, k, v, cells, scale)
    else:
        out_THD = FlashParts.apply(q, k, v, cells, scale, window)
    return out_THD[None], None


def scores_only(cells: SharedCells, window: int | None) -> bool:
    """Is no gradient wanted, and no token outside a window?"""
    wide = window is None or window >= cells.prefixes.length + cells.segments.length
    return wide and not cells.for_gradient and not torch.is_grad_enabled()


def wants_masks(lm: Any) -> bool:
    """Will this model use the masked form of attention, according to its configuration and device?"""
    config = lm.config.get_text_config()
    names = ("attn_logit_softcapping", "attention_dropout", "attn_pdrop")
    return lm.device.type not in ("cpu", "meta") or any(getattr(config, name, None) for name in names)


def own_attention(module: Any, own: str) -> Callable[..., Any]:
    """The function that transformers itself would have called."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(own, eager)
