from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_rag.commands import merge
from ds_rag.config import DataConfig, ModelConfig, build
from ds_rag.data.batch import lay_out_cells, pad_right
from ds_rag.models.adapters import ADAPTER_FILE, has_adapters
from ds_rag.models.from_settings import open_generator, open_pair, open_retriever
from ds_rag.runtime.errors import UserError

MakeFolder = Callable[..., Path]
CELLS = lay_out_cells([torch.arange(5, 12).int().numpy()] * 2, [torch.arange(20, 24).int().numpy()] * 2, 0)


def adapted(folder: Path, **flags: Any) -> Any:
    model = open_generator(ModelConfig(generator=str(folder), lora="generator", **flags), list, folder)
    return model.eval()


def teach(model: Any) -> None:
    """As training would: B away from zero."""
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bloom"])
def test_an_adapter_adds_b_a_x_and_is_what_a_saved_folder_brings_back(model_folder: MakeFolder, kind: str) -> None:
    base = model_folder(kind, "AutoModelForCausalLM")
    plain = open_generator(ModelConfig(generator=str(base)), list, base).eval()
    model = adapted(base, lora_r=4, lora_alpha=12)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if "lora_" in n
    }
    torch.testing.assert_close(model(CELLS), plain(CELLS))  # B starts at zero
    teach(model)
    with torch.no_grad():
        moved = model(CELLS)
        assert (moved - plain(CELLS)).abs().max() > 0.01
        weights = dict(model.named_parameters())
        for name in [n for n in weights if "lora_A" in n]:  # by hand: W + alpha / r B A
            low = weights[name.replace("lora_A", "lora_B")] @ weights[name]
            target = plain.get_parameter(name.split(".lora_A")[0] + ".weight")
            target += (12 / 4) * (low.T if target.shape != low.shape or kind == "gpt2" else low)
        torch.testing.assert_close(plain(CELLS), moved, rtol=1e-4, atol=1e-4)
    model.save(base / "saved")
    assert not (base / "saved" / "model.safetensors").exists() and not (base / "saved" / "config.json").exists()
    again = open_generator(ModelConfig(generator=str(base / "saved")), list, base).eval()
    assert not has_adapters(again) and again.lm.config.model_type == kind
    torch.testing.assert_close(again(CELLS), moved, rtol=1e-4, atol=1e-4)


def test_a_retriever_learns_adapters_but_in_its_unused_pooler(model_folder: MakeFolder) -> None:
    base = model_folder("bert")
    flags = ModelConfig(retriever=str(base), lora="both", lora_r=2, encoders="two")
    model = open_retriever(flags, DataConfig(), list, base).eval()
    teach(model)
    learning = [n for n, p in model.named_parameters() if p.requires_grad]
    assert learning and all("lora_" in n and "pooler" not in n for n in learning)
    assert any(n.startswith("passage_encoder.") for n in learning)
    tokens = pad_right([torch.arange(5, 12).int().numpy()], 0)
    model.save(base / "saved")
    again = open_retriever(ModelConfig(retriever=str(base / "saved")), DataConfig(), list, base).eval()
    for side in ("query", "passage"):
        torch.testing.assert_close(again.embed(tokens, side), model.embed(tokens, side), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(again.embed(tokens, "query"), again.embed(tokens, "passage"))


def test_layers_by_name(model_folder: MakeFolder) -> None:
    model = adapted(model_folder("llama", "AutoModelForCausalLM"), lora_target_modules="q_proj, v_proj")
    layers = {n.split(".lora_")[0].rsplit(".", 1)[-1] for n, p in model.named_parameters() if p.requires_grad}
    assert layers == {"q_proj", "v_proj"}


def test_layers_that_are_not_there(model_folder: MakeFolder) -> None:
    with pytest.raises(UserError, match="--lora_target_modules query: no such layers"):
        adapted(model_folder("llama", "AutoModelForCausalLM"), lora_target_modules="query")


def test_an_adapter_without_its_base(model_folder: MakeFolder) -> None:
    base = model_folder("llama", "AutoModelForCausalLM")
    adapted(base).save(base / "saved")
    settings = json.loads((base / "saved" / ADAPTER_FILE).read_text())
    (base / "saved" / ADAPTER_FILE).write_text(json.dumps(settings | {"base_model_name_or_path": "gone"}))
    with pytest.raises(UserError, match="an adapter whose base is not there"):
        open_generator(ModelConfig(generator=str(base / "saved")), list, base)
    (base / "saved" / ADAPTER_FILE).write_text(json.dumps(settings))
    for file in [*base.glob("*.safetensors"), *base.glob("*.bin")]:
        file.unlink()
    with pytest.raises(UserError, match="an adapter whose base is not there") as lacking:
        open_generator(ModelConfig(generator=str(base / "saved")), list, base)
    assert "no weights in" in str(lacking.value.found)


def test_an_adapter_on_an_adapter_is_refused(model_folder: MakeFolder) -> None:
    """Saved alone it would name the base, and the first adapter would be lost."""
    base = model_folder("llama", "AutoModelForCausalLM")
    adapted(base).save(base / "saved")
    with pytest.raises(UserError, match="is itself an adapter") as refused:
        adapted(base / "saved")
    assert "--generator RUN/merged/generator" in str(refused.value)
    open_generator(ModelConfig(generator=str(base / "saved"), lora="retriever"), list, base)  # meant for the other


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lora": "generator"}, "--lora: the generator is a new model"),
        ({"lora": "retriever", "retriever": "x", "freeze": "retriever"}, "--lora retriever and --freeze retriever"),
        ({"load_in_4bit": "generator", "generator": "x"}, "4-bit weights cannot be trained"),
        ({"lora_dropout": 1.0}, "--lora_dropout: out of bounds"),
        ({"lora_r": 0}, "--lora_r: out of bounds"),
    ],
)
def test_contradictions(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(flags)


needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is an optional extra"
)


@needs_bitsandbytes
def test_a_base_in_4_bits_stays_and_its_adapter_learns(model_folder: MakeFolder) -> None:
    base = model_folder("llama", "AutoModelForCausalLM", hidden_size=64, intermediate_size=64)
    plain = open_generator(ModelConfig(generator=str(base)), list, base).eval()
    model = adapted(base, load_in_4bit="generator")
    kept = model.lm.model.layers[0].mlp.up_proj.base_layer.weight
    assert kept.dtype == torch.uint8 and kept.numel() * 2 == 64 * 64
    found, wanted = model(CELLS), plain(CELLS)
    assert 0 < (found - wanted).abs().max() < 1.5  # nats: rounded to 16 values
    found.sum().backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved and all("lora_B" in n for n in moved)


@needs_bitsandbytes
def test_a_run_in_4_bits_is_opened_as_it_learned_and_merged_in_full_precision(
    model_folder: MakeFolder, tmp_path: Path
) -> None:
    """RUN/index holds vectors of the rounded base and its adapter: queries must come from the same model."""
    base = model_folder("bert", hidden_size=64, intermediate_size=64)
    flags: dict[str, Any] = {"retriever": str(base), "lora": "retriever", "load_in_4bit": "retriever"}
    model = open_retriever(ModelConfig(**flags), DataConfig(), list, base).eval()
    teach(model)
    run = tmp_path / "run"
    model.save(run / "retriever")
    (run / "config.json").write_text(json.dumps(flags))
    tokens = pad_right([torch.arange(5, 12).int().numpy()], 0)

    @torch.no_grad()
    def vector(retriever: Any) -> torch.Tensor:
        return retriever.eval().embed(tokens, "query")

    wanted = vector(model)
    assert torch.equal(vector(open_pair(run, ModelConfig(**flags), DataConfig())[0]), wanted)
    merge.main(argparse.Namespace(run=str(run), out=None, device="cpu"))
    whole, merged = (
        open_retriever(ModelConfig(retriever=str(folder)), DataConfig(), list, base)
        for folder in (run / "retriever", run / "merged" / "retriever")
    )
    assert not any((run / "merged").rglob(ADAPTER_FILE)) and all(p.dtype == torch.float32 for p in merged.parameters())
    torch.testing.assert_close(vector(merged), vector(whole), rtol=1e-4, atol=1e-5)
    assert (vector(merged) - wanted).abs().max() > 1e-3  # the base was rounded
