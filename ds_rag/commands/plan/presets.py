"""Configurations of common models: those keys of their published config.json files that are needed for a plan."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]
_DECODER_SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "intermediate_size", "vocab_size"),
)


def _encoder(kind: str, hidden: int, layers: int, heads: int, vocabulary: int, positions: int = 512) -> Config:
    """An encoder whose MLP is four times as wide as its hidden size."""
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "type_vocab_size": 2 if kind == "bert" else 1,
        "hidden_dropout_prob": 0.1,
    }


def _decoder(kind: str, sizes: tuple[int, int, int, int, int, int], **more: Any) -> Config:
    """sizes: those of _DECODER_SIZES, in their order."""
    return {"model_type": kind, **dict(zip(_DECODER_SIZES, sizes, strict=True)), **more}


def _gpt2(hidden: int, layers: int, heads: int) -> Config:
    sizes = {"n_embd": hidden, "n_layer": layers, "n_head": heads, "vocab_size": 50257, "n_positions": 1024}
    return {"model_type": "gpt2", **sizes}


_TIED = {"tie_word_embeddings": True}

MODELS: dict[str, Config] = {
    # retrievers
    "minilm": _encoder("bert", 384, 6, 12, 30522),  # all-MiniLM-L6-v2
    "bge-small": _encoder("bert", 384, 12, 12, 30522),
    "bge-base": _encoder("bert", 768, 12, 12, 30522),
    "bge-large": _encoder("bert", 1024, 24, 16, 30522),
    "bge-m3": _encoder("xlm-roberta", 1024, 24, 16, 250002, 8194),
    "contriever": _encoder("bert", 768, 12, 12, 30522),
    "e5-mistral-7b": _decoder("mistral", (4096, 32, 32, 8, 14336, 32000)),
    # generators
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "qwen-0.5b": _decoder("qwen2", (896, 24, 14, 2, 4864, 151936), **_TIED),  # Qwen2.5
    "qwen-1.5b": _decoder("qwen2", (1536, 28, 12, 2, 8960, 151936), **_TIED),
    "qwen-3b": _decoder("qwen2", (2048, 36, 16, 2, 11008, 151936), **_TIED),
    "qwen-7b": _decoder("qwen2", (3584, 28, 28, 4, 18944, 152064)),
    "llama-1b": _decoder("llama", (2048, 16, 32, 8, 8192, 128256), head_dim=64, **_TIED),  # Llama 3.2
    "llama-3b": _decoder("llama", (3072, 28, 24, 8, 8192, 128256), head_dim=128, **_TIED),
    "llama-7b": _decoder("llama", (4096, 32, 32, 32, 11008, 32000)),  # Llama 2
    "llama-8b": _decoder("llama", (4096, 32, 32, 8, 14336, 128256)),  # Llama 3.1
    "llama-70b": _decoder("llama", (8192, 80, 64, 8, 28672, 128256)),
    "mistral-7b": _decoder("mistral", (4096, 32, 32, 8, 14336, 32000)),
}
