"""How model families differ, as far as it matters for counting parameters and activations.

A family is a `model_type` of transformers. Its entry says which matrices have biases, how often a layer normalises, and
which names its configuration has for the sizes. tests/unit/commands/plan/test_shapes.py compares every entry with the
transformers model, built on the meta device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SIZES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp": "intermediate_size",
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
    "types": "type_vocab_size",
}


@dataclass(frozen=True)
class Family:
    """How one `model_type` is built."""

    causal: bool = True
    gated: bool = True  # three matrices in the MLP, else two
    rms: bool = True  # RMSNorm (d weights, computed in float32), else LayerNorm
    norm_bias: bool = False
    wide_norms: bool = False  # RMSNorm's product with the weight is in float32 too
    norms: int = 2  # number of norms in a layer
    qkv_bias: bool = False  # may be overridden by the configuration's `attention_bias`
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # norms of head_dim over queries and keys
    final_norm: bool = True
    embedding_norm: bool = False
    # Rows of learned positions in addition to the configuration's `max_position_embeddings`; None: not learned.
    learned_positions: int | None = None
    pooler: bool = False
    relative_buckets: int = 0  # rows of the table (buckets, heads) of relative positions; 0: no table
    skips_first_norm: bool = False  # the first layer has one norm fewer
    tied: bool = True  # the default of the configuration's `tie_word_embeddings`
    activation_kept: float = 2  # tensors of the MLP's width that its activation saves for the backward
    fused_rotary: bool = False  # q, k, v are one tensor, saved in addition to the rotated q and k
    copies_output: bool = False  # attention's output is saved twice: from the kernel, and with heads joined
    dropout: str = ""  # configuration key of the dropout on the residual stream
    sizes: dict[str, str] = field(default_factory=dict)  # names that differ from SIZES
    defaults: dict[str, Any] = field(default_factory=dict)  # values of keys that a configuration may leave out


_LLAMA = Family(tied=False, activation_kept=4)
_BERT: dict[str, Any] = {
    "causal": False,
    "gated": False,
    "rms": False,
    "norm_bias": True,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "final_norm": False,
    "embedding_norm": True,
    "learned_positions": 0,
    "dropout": "hidden_dropout_prob",
}
_512: dict[str, Any] = {"max_position_embeddings": 512}
_PLAIN: dict[str, Any] = _BERT | {"causal": True, "final_norm": True, "embedding_norm": False, "dropout": ""}
_GEMMA: dict[str, Any] = {"activation_kept": 4, "wide_norms": True, "defaults": {"head_dim": 256}}

FAMILIES: dict[str, Family] = {
    "bert": Family(**_BERT, pooler=True, copies_output=True, defaults=_512 | {"type_vocab_size": 2}),
    "roberta": Family(**_BERT, pooler=True, copies_output=True, defaults=_512 | {"type_vocab_size": 2}),
    "xlm-roberta": Family(**_BERT, pooler=True, copies_output=True, defaults=_512 | {"type_vocab_size": 2}),
    "mpnet": Family(**_BERT, pooler=True, copies_output=True, relative_buckets=32, defaults=_512),
    "distilbert": Family(
        **_BERT | {"dropout": "dropout"},
        sizes={"hidden": "dim", "layers": "n_layers", "heads": "n_heads", "mlp": "hidden_dim"},
        defaults=_512,
    ),
    "modernbert": Family(
        causal=False,
        rms=False,
        embedding_norm=True,
        skips_first_norm=True,
        activation_kept=4,
        fused_rotary=True,
        dropout="mlp_dropout",
    ),
    "gpt2": Family(
        **_PLAIN | {"dropout": "resid_pdrop"},
        sizes={
            "hidden": "n_embd",
            "layers": "n_layer",
            "heads": "n_head",
            "mlp": "n_inner",
            "positions": "n_positions",
        },
        defaults={"resid_pdrop": 0.1, "n_positions": 1024},
    ),
    "gpt_neox": Family(
        **_PLAIN | {"learned_positions": None, "tied": False, "dropout": "hidden_dropout"}, fused_rotary=True
    ),
    "opt": Family(
        **_PLAIN | {"learned_positions": 2, "activation_kept": 1, "dropout": "dropout"},
        sizes={"mlp": "ffn_dim"},
        defaults={"dropout": 0.1, "max_position_embeddings": 2048},
    ),
    "llama": _LLAMA,
    "mistral": Family(tied=False, activation_kept=4, defaults={"num_key_value_heads": 8}),
    "phi3": Family(tied=False, activation_kept=4, fused_rotary=True),
    "qwen2": Family(tied=False, activation_kept=4, qkv_bias=True),
    "qwen3": Family(tied=False, activation_kept=4, qk_norm=True, defaults={"head_dim": 128}),
    "gemma": Family(**_GEMMA),
    "gemma2": Family(**_GEMMA, norms=4),
    "gemma3_text": Family(**_GEMMA, norms=4, qk_norm=True),
}
