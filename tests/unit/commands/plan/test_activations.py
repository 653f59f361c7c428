"""Bytes that autograd really saves, on a CPU, against those counted from the shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ds_rag.commands.plan.activations import Activations
from ds_rag.commands.plan.shapes import shape_from
from ds_rag.commands.plan.workload import Workload
from ds_rag.data.batch import Tokens, list_cells
from ds_rag.models.from_settings import checkpoint_activations, fuse_activations
from ds_rag.models.generator import Generator
from ds_rag.models.retriever import Retriever, RetrieverSettings
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.step.activation_memory import count_saved

KEYS: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 352,
    "max_position_embeddings": 256, "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip
GPT2: dict[str, Any] = {"vocab_size": 64, "n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 256}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
PLAIN: dict[str, Any] = {"num_key_value_heads": None, "head_dim": None}
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "llama": KEYS,
    "mistral": KEYS | {"sliding_window": None},
    "qwen2": KEYS,
    "qwen3": KEYS,
    "gemma": KEYS,
    "opt": KEYS | PLAIN | {"ffn_dim": 352, "dropout": 0.0, "word_embed_proj_dim": 128},
    "gpt_neox": KEYS | PLAIN,
    "phi3": KEYS | {"head_dim": None, "pad_token_id": 0, "eos_token_id": 1},
}
QUIET: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": KEYS | QUIET,
    "roberta": KEYS | QUIET,
    "distilbert": {"vocab_size": 64, "dim": 128, "n_layers": 4, "n_heads": 4, "hidden_dim": 352, "dropout": 0.0}
    | {"attention_dropout": 0.0},
    "modernbert": KEYS | {"global_attn_every_n_layers": 1, "pad_token_id": 0},
}
LOAD = Workload(8, None, 1, query=10, passage=60, answer=10, before=0, after=0)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def config_of(kind: str, keys: dict[str, Any]) -> Any:
    return transformers.AutoConfig.for_model(kind, **{k: v for k, v in keys.items() if v is not None})


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_generators_saved_bytes(kind, precision, checkpointing):
    torch.manual_seed(0)
    lm = transformers.AutoModelForCausalLM.from_config(config_of(kind, DECODERS[kind]))
    fuse_activations(lm)
    generator = Generator(lm, None)
    assert share_prefixes(generator) is None
    checkpoint_activations([lm], checkpointing)
    for p in lm.parameters():
        p.data = p.to(DTYPES[precision])
    rng = np.random.default_rng(0)
    passages = [rng.integers(0, 64, 60).astype(np.int32) for _ in range(8)]
    pairs = [(p, rng.integers(0, 64, 20).astype(np.int32)) for p in passages for _ in range(8)]
    cells = generator.lay_out(list_cells([p for p, _ in pairs], [s for _, s in pairs], [10] * 64), 0)
    load = LOAD.generator(1)
    assert (cells.token_count, len(cells.target_lengths)) == (load.tokens, load.texts)
    with count_saved(list(generator.train().parameters())) as saved:
        out = generator(cells)
        found = sum(saved.values())
    del out
    activations = Activations(shape_from(lm.config.to_dict(), kind, "--test", True), precision, checkpointing)
    counted = activations.saved_per_token * load.tokens + activations.logits(load.targets, True)
    assert counted == pytest.approx(found, rel=0.07)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_retrievers_saved_bytes(kind, precision):
    torch.manual_seed(0)
    encoder = transformers.AutoModel.from_config(config_of(kind, ENCODERS[kind]))
    retriever = Retriever(encoder, None, RetrieverSettings())
    for p in retriever.parameters():
        p.data = p.to(DTYPES[precision])
    queries, passages = (Tokens(torch.ones(8, n, dtype=torch.int64), torch.ones(8, n).long()) for n in (10, 60))
    with count_saved(list(retriever.train().parameters())) as saved:
        out = retriever(queries, passages)
        found = sum(saved.values())
    del out
    activations = Activations(shape_from(encoder.config.to_dict(), kind, "--test", False), precision)
    counted = activations.saved_per_token * LOAD.retriever().tokens
    assert counted == pytest.approx(found, rel=0.07)
