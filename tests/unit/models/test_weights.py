"""Weights that a folder does not hold: whole, or named with their number, never random.

Covered: a prefix before every name (DDP's, torch.compile's, both, in the middle, Lightning's, sentence-transformers'
own), for either model, in safetensors, in a .bin and in shards; a missing head, layer or single weight; more layers
than the configuration has; another shape; adapters whose names do not fit. What may be missing or left over: a pooler,
another task's head, tied heads, position_ids. Sharded, at stage 3: tests/distributed/test_loading_sharded.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ds_rag.config import DataConfig, ModelConfig
from ds_rag.models.from_settings import open_generator, open_retriever
from ds_rag.runtime.errors import UserError

Weights = dict[str, torch.Tensor]
MakeFolder = Callable[..., Path]


def rewrite(folder: Path, change: Callable[[Weights], Weights], form: str = "safetensors") -> Path:
    file = folder / "model.safetensors"
    weights = {name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}
    file.unlink()
    if form == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    elif form == "shards":
        names = sorted(weights)
        parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for part, inside in parts.items():
            save_file({name: weights[name] for name in inside}, folder / part, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: part for part, inside in parts.items() for name in inside}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        save_file(weights, file, metadata={"format": "pt"})
    return folder


def before(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def generator(folder: Path) -> Any:
    return open_generator(ModelConfig(generator=str(folder)), list, folder).lm


def encoder(folder: Path) -> Any:
    return open_retriever(ModelConfig(retriever=str(folder)), DataConfig(), list, folder).encoder


def equal(found: Any, wanted: Any) -> None:
    for name, tensor in wanted.state_dict().items():
        if "pooler" not in name:
            assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.parametrize("form", ["safetensors", "bin", "shards"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "model."])
def test_a_generator_under_a_wrappers_names(prefix: str, form: str, model_folder: MakeFolder, tiny: Any) -> None:
    folder = rewrite(model_folder("llama", "AutoModelForCausalLM"), before(prefix), form)
    lm = generator(folder)
    equal(lm, tiny("llama"))
    lm.save_pretrained(folder / "again")  # under its own names
    assert all(name.startswith(("model.", "lm_head.")) for name in load_file(folder / "again" / "model.safetensors"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "0.auto_model.", "bert."])
@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForMaskedLM"])
def test_an_encoder_under_a_wrappers_names(auto: str, prefix: str, model_folder: MakeFolder) -> None:
    folder = model_folder("bert", auto)
    wanted = encoder(folder)
    equal(encoder(rewrite(folder, before(prefix))), wanted)


def test_a_wrapper_in_the_middle(model_folder: MakeFolder, tiny: Any) -> None:
    def middle(weights: Weights) -> Weights:
        return {name.replace("layers.", "layers._orig_mod."): tensor for name, tensor in weights.items()}

    equal(generator(rewrite(model_folder("llama", "AutoModelForCausalLM"), middle)), tiny("llama"))


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (without("lm_head"), "1 not there: lm_head.weight"),
        (without("layers.1."), "9 not there: model.layers.1."),
        (without("layers.0.mlp.up_proj"), "1 not there: model.layers.0.mlp.up_proj.weight"),
        (before("student."), "21 not there: lm_head.weight, model.embed_tokens.weight, "),
        (lambda w: w | {"model.layers.2.mlp.up_proj.weight": torch.ones(48, 32)}, "1 for parts that it does not have"),
        (lambda w: w | {"model.norm.weight": torch.ones(31)}, "model.norm.weight (31,) instead of (32,)"),
    ],
    ids=["no head", "a layer", "one weight", "unknown prefix", "a layer more", "another shape"],
)
def test_a_generators_weights_are_missed(change: Any, found: str, model_folder: MakeFolder) -> None:
    folder = rewrite(model_folder("llama", "AutoModelForCausalLM", tie_word_embeddings=False), change)
    with pytest.raises(UserError, match="weights") as error:
        generator(folder)
    assert found in str(error.value.found)


@pytest.mark.parametrize(
    ("kind", "change", "found"),
    [
        ("bert", without("layer.1."), "16 not there: encoder.layer.1."),
        ("bert", before("student."), "not there"),
        ("llama", without("layers.0.self_attn.q_proj"), "1 not there: layers.0.self_attn.q_proj.weight"),
    ],
)
def test_a_retrievers_weights_are_missed(kind: str, change: Any, found: str, model_folder: MakeFolder) -> None:
    with pytest.raises(UserError, match="the weights in the folder are not those") as error:
        encoder(rewrite(model_folder(kind), change))
    assert found in str(error.value.found)


def test_fewer_layers_than_the_files_hold(model_folder: MakeFolder) -> None:
    folder = model_folder("bert")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 1}))
    with pytest.raises(UserError, match="the weights in the folder are not those") as error:
        encoder(folder)
    assert "16 for parts that it does not have: encoder.layer.1" in str(error.value.found)


def test_what_may_be_missing_or_left_over(model_folder: MakeFolder, tiny: Any) -> None:
    """A pooler, other tasks' heads, tied heads, tables that today's models compute."""
    equal(encoder(rewrite(model_folder("bert"), without("pooler"))), tiny("bert", "AutoModel"))
    extra = {"embeddings.position_ids": torch.arange(64)[None], "cls.seq_relationship.weight": torch.ones(2, 32)}
    equal(encoder(rewrite(model_folder("bert"), lambda w: w | extra)), tiny("bert", "AutoModel"))
    equal(generator(rewrite(model_folder("gpt2", "AutoModelForCausalLM"), without("lm_head"))), tiny("gpt2"))
    head = {"v_head.summary.weight": torch.ones(1, 32)}
    equal(generator(rewrite(model_folder("llama", "AutoModelForCausalLM"), lambda w: w | head)), tiny("llama"))
    equal(encoder(model_folder("llama", "AutoModelForCausalLM")), tiny("llama").model)  # without its head


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda w: {k.replace("base_model.model.", "other."): v for k, v in w.items()}, "28 not there"),
        (without("layers.1."), "14 not there"),
        (lambda w: w | {"base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": torch.ones(4, 32)}, "1 not used"),
    ],
    ids=["other names", "a layer gone", "a layer more"],
)
def test_an_adapter_that_is_not_the_bases(change: Any, found: str, model_folder: MakeFolder) -> None:
    base = model_folder("llama", "AutoModelForCausalLM")
    model = open_generator(ModelConfig(generator=str(base), lora="generator", lora_r=4), list, base)
    model.save(base / "saved")
    file = base / "saved" / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="not the weights of its base's adapter") as error:
        generator(base / "saved")
    assert found in str(error.value.found)
