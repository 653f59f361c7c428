"""FLOPs of a step: counted while it runs, or, for shapes that are too large to run, on meta tensors.

torch counts the matrix products. Its counter does not know the CPU's flash attention, and counts all pairs for causal
attention; so attention is counted here, by the (query, key) pairs that are not masked: 12 d FLOPs for each pair in a
layer, forward and backward.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from variants import Bench, Size

from ds_rag.data.batch import list_cells
from ds_rag.models.generator import Generator
from ds_rag.models.shared_prefix.layout import SharedCells, lay_out_shared


def attention_flops(
    query: Any, key: Any, value: Any, dropout: Any = 0.0, causal: bool = False, *_: Any, **__: Any
) -> int:
    """Two products over the pairs that the kernel visits."""
    rows, heads, length, width = query
    pairs = length * (length + 1) // 2 if causal else length * key[2]
    return 4 * rows * heads * pairs * width


def attention_backward_flops(
    grad: Any,
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    lse: Any,
    dropout: Any = 0.0,
    causal: bool = False,
    *_: Any,
    **__: Any,
) -> int:
    """Five products, one of which recomputes the scores of the forward."""
    return attention_flops(query, key, value, dropout, causal) * 5 // 2


ATEN = torch.ops.aten
FORMULAS: dict[Any, Any] = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


def count_step(bench: Bench, name: str) -> float:
    """FLOPs of one variant. In one pass all of them are useful: there is neither padding nor a second forward."""
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        bench.run(name)
    return float(counter.get_total_flops())


# --- larger shapes, on meta tensors ---

MODELS: dict[str, dict[str, Any]] = {
    "GPT-2 124M": {"kind": "gpt2"},
    "Llama 7B": {"kind": "llama"},
}


def count_table() -> list[dict[str, object]]:
    """Counted ratios against the naive marginal: batch 8, 16, 32, answers of 20 and 60, passages of 160 tokens."""
    rows = []
    for name, model in MODELS.items():
        generator = on_meta(model["kind"])
        for batch in (8, 16, 32):
            for answer in (20, 60):
                rows.append({"model": name, "batch": batch, "answer": answer} | ratios(generator, batch, answer))
    return rows


def ratios(generator: Generator, batch: int, answer: int) -> dict[str, object]:
    size = Size("", batch, 160, 20, answer)
    every = [(i, j) for j in range(batch) for i in range(batch)]
    diagonal = [(i, i) for i in range(batch)]
    ours = count_cells(generator, size, every, shared=True)
    naive = count_cells(generator, size, every, shared=False)
    forward, kept = ours / 3, count_cells(generator, size, diagonal, shared=True)
    padded = count_padded(generator, size)
    positive = count_positive(generator, size)
    return {
        "one pass": f"{naive / ours:.2f}",
        "exact": f"{naive / (forward + ours):.2f}",
        "posterior, 1 cell": f"{naive / (forward + kept):.2f}",
        "per cell vs padded": f"{padded * batch / ours:.2f}",
        "positive only": f"{padded / positive[0]:.2f}",
        "answers only": f"{padded / positive[1]:.2f}",
        "naive TFLOP": f"{naive / 1e12:,.2f}",
    }


def on_meta(kind: str) -> Generator:
    from transformers import AutoConfig, AutoModelForCausalLM

    from ds_rag.models.shared_prefix import attention

    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind))
    attention.install(lm)
    generator = Generator(lm, None)
    generator.keep_bytes = math.inf  # keep all logits, as in one pass; chunks have few at once
    return generator


def cells_for(size: Size, pairs: list[tuple[int, int]], all_targets: bool = False) -> SharedCells:
    """Cells of the pairs (query i, passage j), with distinct token ids. all_targets: every token except the first is a
    target, not only the answer's."""
    passages = [np.arange(size.passage, dtype=np.int32) + j for j in range(size.batch)]
    suffixes = [np.arange(size.query + size.answer, dtype=np.int32) + 1000 * i for i in range(size.batch)]
    targets = size.passage + size.query + size.answer - 1 if all_targets else size.answer
    chosen = [(passages[j], suffixes[i]) for i, j in pairs]
    return lay_out_shared(list_cells([p for p, _ in chosen], [s for _, s in chosen], [targets] * len(pairs)))


def count_cells(
    generator: Generator, size: Size, pairs: list[tuple[int, int]], shared: bool, all_targets: bool = False
) -> float:
    """FLOPs of forward and backward. shared: with shared prefixes; False: each cell as a sequence of its own."""
    if shared:
        return linear_flops(generator, cells_for(size, pairs, all_targets)) + layer_flops(
            generator, shared_pairs(size, pairs)
        )
    one = cells_for(size, pairs[:1], all_targets)
    length = size.passage + size.query + size.answer
    linear = linear_flops(generator, one) * length / (length - 1)  # plain sequences read the last token too
    return len(pairs) * (linear + layer_flops(generator, length * (length + 1) / 2))


def shared_pairs(size: Size, pairs: list[tuple[int, int]]) -> float:
    """The number of (query, key) pairs that are not masked in the shared layout."""
    passages, segment = len({j for _, j in pairs}), size.query + size.answer - 1
    before = passages * size.passage * (size.passage + 1) / 2
    return before + len(pairs) * (segment * size.passage + segment * (segment + 1) / 2)


def count_padded(generator: Generator, size: Size, length: int = 256) -> float:
    """The toolkit's step: `length` positions for each query, with logits at all of them, and attention over all pairs,
    because a padding mask is passed."""
    wide = Size("", size.batch, length - size.query - size.answer, size.query, size.answer)
    pairs = [(i, i) for i in range(size.batch)]
    linear = linear_flops(generator, cells_for(wide, pairs, all_targets=True)) * length / (length - 1)
    return linear + size.batch * layer_flops(generator, length * (length + 1) / 2)


def count_positive(generator: Generator, size: Size) -> tuple[float, float]:
    """The toolkit's objective with shared prefixes: (loss on all tokens, loss on answers only)."""
    pairs = [(i, i) for i in range(size.batch)]
    attention = layer_flops(generator, shared_pairs(size, pairs))
    return (
        linear_flops(generator, cells_for(size, pairs, all_targets=True)) + attention,
        linear_flops(generator, cells_for(size, pairs)) + attention,
    )


def layer_flops(generator: Generator, pairs: float) -> float:
    config = generator.lm.config
    return 12.0 * config.hidden_size * config.num_hidden_layers * pairs


def linear_flops(generator: Generator, cells: SharedCells) -> float:
    """FLOPs of the matrix products of forward and backward, with the head and without attention, on meta tensors."""
    # On meta tensors attention becomes batched products, which no other part of these models uses.
    ignore: dict[Any, Any] = {op: lambda *_, **__: 0 for op in (*FORMULAS, ATEN.bmm)}
    with FlopCounterMode(display=False, custom_mapping=ignore) as counter:
        generator(cells.to("meta")).sum().backward()
    return float(counter.get_total_flops())
