"""Parameters by arithmetic against transformers models built without memory, on the meta device."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers

from ds_rag.commands.plan.families import FAMILIES
from ds_rag.commands.plan.presets import MODELS
from ds_rag.commands.plan.shapes import read_shape, shape_from
from ds_rag.runtime.errors import UserError

# Beside each family's own defaults: what a configuration can change.
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
    ("llama", {"num_key_value_heads": 8, "head_dim": 64}),
    ("qwen3", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("gpt2", {"n_inner": 999}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("gpt_neox", {"attention_bias": False}),
    ("bert", {"type_vocab_size": 1}),
]
SMALLER: dict[str, Any] = {"num_hidden_layers": 3, "n_layer": 3, "n_layers": 3}


def counted(config: Any, head: bool) -> int:
    auto: Any = transformers.AutoModelForCausalLM if head else transformers.AutoModel
    with torch.device("meta"):
        return sum(p.numel() for p in auto.from_config(config).parameters())


def config_of(kind: str, **keys: Any) -> Any:
    return transformers.AutoConfig.for_model(kind, **keys)


@pytest.mark.parametrize(("kind", "keys"), [*((kind, {}) for kind in FAMILIES), *OTHERS])
def test_parameters_are_those_of_the_model(kind, keys):
    names = config_of(kind).to_dict() | config_of(kind).attribute_map
    config = config_of(kind, **{k: v for k, v in SMALLER.items() if k in names}, **keys)
    for head in {FAMILIES[kind].causal, False}:
        shape = shape_from(config.to_dict(), kind, "--test", head)
        assert shape.parameters == counted(config, head), head


@pytest.mark.parametrize("name", MODELS)
def test_presets_are_configurations_that_transformers_builds(name):
    keys = dict(MODELS[name])
    config = config_of(keys.pop("model_type"), **keys)
    head = FAMILIES[config.model_type].causal
    assert read_shape(name, "--test", head).parameters == counted(config, head)


# What their pages say, in units of 1e9.
@pytest.mark.parametrize(
    ("name", "billions"),
    [("bge-large", 0.335), ("minilm", 0.0227), ("llama-8b", 8.03), ("llama-1b", 1.24), ("qwen-7b", 7.62),
     ("qwen-0.5b", 0.494), ("mistral-7b", 7.24), ("gpt2", 0.124), ("gpt2-xl", 1.56), ("llama-70b", 70.6)],
)  # fmt: skip
def test_published_sizes(name, billions):
    head = FAMILIES[MODELS[name]["model_type"]].causal
    assert read_shape(name, "--test", head).parameters / 1e9 == pytest.approx(billions, rel=0.005)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "bert"])
def test_lora_parameters_by_hand(kind):
    """Rank times inputs plus outputs, of every linear map in the layers."""
    with torch.device("meta"):
        model: Any = transformers.AutoModel.from_config(config_of(kind, num_hidden_layers=2, n_layer=2))
    shape = shape_from(model.config.to_dict(), kind, "--test", False)
    layers = model.h if kind == "gpt2" else model.encoder.layer if kind == "bert" else model.layers
    weights = [p for p in layers.parameters() if p.ndim == 2]
    fused = kind == "gpt2"  # whose q, k, v are one matrix; ours counts a pair of thin matrices for each
    wanted = sum(sum(p.shape) for p in weights) + fused * 2 * 2 * shape.hidden
    assert shape.lora_parameters(8) == 8 * wanted


def test_sources(tmp_path):
    config = {"model_type": "llama"} | {k: v for k, v in MODELS["llama-1b"].items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "other.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    wanted = read_shape("llama-1b", "--generator", True).parameters
    for source in (str(tmp_path), f"config:{tmp_path / 'config.json'}", f"config:{tmp_path / 'other.json'}"):
        assert read_shape(source, "--generator", True).parameters == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a model configuration"),
        ("[1]", "not a model configuration"),
        ('{"model_type": "whisper"}', "whisper"),
        ('{"model_type": "bert", "hidden_size": 8}', "not a causal LM"),
        ('{"model_type": "llama", "hidden_size": "big"}', "hidden_size"),
        ('{"model_type": "llama", "hidden_size": 8}', "num_attention_heads"),
    ],
)
def test_wrong_configurations_are_errors(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_shape(str(tmp_path), "--generator", True)


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'llama-8b'"):
        read_shape("lama-8b", "--generator", True)
    with pytest.raises(UserError, match="no such file"):
        read_shape("config:nothing.json", "--generator", True)
