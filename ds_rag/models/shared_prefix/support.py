"""Can this model read shared prefixes? Asked of the model itself, once, before training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ds_rag.data.batch import CellList, lay_out_plain, list_cells
from ds_rag.models.generator import Generator
from ds_rag.models.shared_prefix import attention
from ds_rag.models.shared_prefix.layout import lay_out_shared

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
# Of the largest log-probability: what the type's rounding makes. A wrong mask or position is off by far more.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}


def share_prefixes(generator: Generator) -> str | None:
    """Turns the shared-prefix layout on: each passage is read once for all the queries that have it.

    Values and gradients are those of plain sequences; the tokens fall from n (P + S) to P + n S for n queries on a
    passage of P tokens, each followed by S. Where the model does not fit the layout it stays off.

    The model scores a few short cells in both layouts and must give the same log-probabilities. What so short a
    test cannot show (attention windows) is read from the configuration and from what reaches the attention.

    Returns:
        None where the layout is on, else the reason why it is not.

    Example:
        >>> ds_rag.share_prefixes(generator) is None, generator.shares_prefixes
        (True, True)
    """
    reason = misfit(generator)
    generator.shares_prefixes = reason is None
    return reason


@torch.no_grad()
def misfit(generator: Generator) -> str | None:
    """None, or why the model cannot be served."""
    lm, training = generator.lm, generator.training
    config = lm.config.get_text_config()
    if unknown := set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS:
        return f"layers of {', '.join(sorted(unknown))}"
    own = config._attn_implementation
    generator.eval()
    try:
        cells = sample_cells(generator.vocabulary)
        alone = [generator(lay_out_plain(cells.take([c]), 0).to(lm.device))[0] for c in range(len(cells))]
        attention.install(lm)
        scores, masked = (lay_out_shared(cells, masked).to(lm.device) for masked in (False, True))
        layouts = [scores, replace(scores, for_gradient=True, masks={}), masked]
        shared = [generator(layout) for layout in layouts]  # all forms of attention: training may need another
        if has_windows(config) and not layouts[0].masks.get("windows seen"):
            return "its attention windows do not reach the attention function"
        pairs = [(a, row[: len(a)]) for found in shared for a, row in zip(alone, found, strict=True)]
        apart = torch.stack([(a - b).abs().max() for a, b in pairs]).max().item()  # NaN stays
        if not apart <= TOLERANCE.get(lm.dtype, 1e-3) * max(float(a.abs().max()) for a, _ in pairs):
            return f"log-probabilities differ by {apart:.2g} nats from plain sequences"
        return None
    except Exception as error:  # whatever a foreign model's code raises: plain sequences still serve it
        lm.set_attn_implementation(own)
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        generator.train(training)


def has_windows(config: Any) -> bool:
    layers = getattr(config, "layer_types", None)
    if layers is not None:
        return "sliding_attention" in layers
    return bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True)


def sample_cells(vocabulary: int) -> CellList:
    """Two prefixes of different lengths, one of which two cells share."""
    ids = np.random.default_rng(0).integers(0, vocabulary, (3, 12)).astype(np.int32)
    prefixes = [ids[0, :5], ids[0, :5], ids[1, :8]]
    return list_cells(prefixes, [ids[0, 5:9], ids[1, 5:12], ids[2, :5]], [2, 3, 1])
