"""A folder at stage 3: no rank ever holds the whole model, and together they hold what the folder says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks

from ds_rag.config import DataConfig, ModelConfig
from ds_rag.models.from_settings import open_generator, open_retriever
from ds_rag.models.sharded import count_of, full_state, is_sharded

PIECES: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4}


def load(folder: str, precision: str) -> dict[str, Any]:
    """Facts about both models of `folder`, the generator loaded in pieces, the retriever after it and whole."""
    flags = ModelConfig(generator=f"{folder}/lm", retriever=f"{folder}/encoder")
    born: list[Any] = []
    whole: list[int] = []  # elements of earlier layers that were still whole, at every layer's birth
    begin = torch.nn.Module.__init__

    def watch(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        parameters = (p for module in born for p in module.parameters(recurse=False))
        whole.append(sum(p.numel() for p in parameters if not p.is_meta))  # to be counted it is made without memory
        born.append(self)

    torch.nn.Module.__init__ = watch  # type: ignore[method-assign]
    try:
        generator = open_generator(flags, list, Path(folder), PIECES | {"bf16": {"enabled": precision == "bf16"}})
    finally:
        torch.nn.Module.__init__ = begin  # type: ignore[method-assign]
    retriever = open_retriever(flags, DataConfig(), list, Path(folder))
    return {
        "whole": sum(p.numel() for p in generator.lm.parameters()),
        "piece": sum(p.ds_tensor.numel() for p in generator.lm.parameters()),
        "most while loading": max(whole),
        "count": count_of(generator),
        "vocabulary": generator.vocabulary,
        "retriever sharded": is_sharded(retriever),
        "state": {k: v.clone() for k, v in full_state(generator).items()},
        "rotary": generator.lm.model.rotary_emb.inv_freq.dtype,
    }


def load_spoiled(folder: str) -> dict[str, Any]:
    """What loading in pieces makes of folders whose weights have other names or are not all there."""
    import json
    import shutil

    from ds_rag.runtime import collectives
    from ds_rag.runtime.errors import UserError

    there = Path(folder)
    if collectives.rank() == 0:
        for name in ("wrapped", "headless", "cut", "masked"):
            shutil.copytree(there / ("encoder" if name == "masked" else "lm"), there / name)
        spoil(there)
    collectives.barrier()
    found: dict[str, Any] = {}
    for name in ("wrapped", "headless", "cut"):
        try:
            model = open_generator(ModelConfig(generator=f"{folder}/{name}"), list, there, PIECES)
            found[name] = {k: v.clone() for k, v in full_state(model).items()}
        except UserError as error:
            found[name] = f"{error.message} {error.found}"
    encoder = open_retriever(ModelConfig(retriever=f"{folder}/masked"), DataConfig(), list, there, PIECES).encoder
    found["masked"] = {k: v.clone() for k, v in full_state(encoder).items()}
    assert json.loads((there / "masked" / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    return found


def spoil(there: Path) -> None:
    import transformers
    from safetensors.torch import load_file, save_file

    changes: dict[str, Any] = {
        "wrapped": lambda w: {f"module.{name}": tensor for name, tensor in w.items()},
        "headless": lambda w: {name: tensor for name, tensor in w.items() if "lm_head" not in name},
        "cut": lambda w: w | {"model.norm.weight": torch.ones(31)},
    }
    for name, change in changes.items():
        file = there / name / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
    base = transformers.AutoModel.from_pretrained(there / "masked")
    masked = transformers.AutoModelForMaskedLM.from_config(base.config)
    masked.bert.load_state_dict(base.state_dict(), strict=False)  # under "bert."; it has no pooler
    masked.save_pretrained(there / "masked")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    from ds_rag.data.almanac import make_world
    from ds_rag.models.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, auto, kind in (("encoder", "AutoModel", "bert"), ("lm", "AutoModelForCausalLM", "llama")):
        train_tokenizer([p.text for p in make_world(0).corpus], 512, folder / name)
        config = transformers.AutoConfig.for_model(kind, vocab_size=512, **SHAPE)
        getattr(transformers, auto).from_config(config).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_ranks_hold_half_each_of_what_the_folder_says(folder: Path, precision: str) -> None:
    from transformers import AutoModelForCausalLM

    wanted = AutoModelForCausalLM.from_pretrained(folder / "lm", dtype=torch.float32)
    total = sum(p.numel() for p in wanted.parameters())
    for facts in run_ranks(load, 2, str(folder), precision):
        assert facts["whole"] == 0 and facts["count"] == total
        assert total / 2 <= facts["piece"] < 0.52 * total
        assert facts["most while loading"] < 0.3 * total  # some layers, never all
        assert facts["vocabulary"] == 512 and facts["rotary"] == torch.float32
        assert not facts["retriever sharded"], "the other model has a stage of its own"
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        for key, tensor in wanted.state_dict().items():
            assert torch.equal(facts["state"]["lm." + key], tensor.to(dtype)), key


def test_what_a_folder_does_not_hold_is_missed_in_pieces_too(folder: Path) -> None:
    """Only rank 0 reads the files; all ranks say the same. A masked LM's encoder is found under its prefix."""
    from safetensors.torch import load_file

    wanted, encoder = (load_file(folder / name / "model.safetensors") for name in ("lm", "encoder"))
    for found in run_ranks(load_spoiled, 2, str(folder)):
        assert all(torch.equal(found["wrapped"]["lm." + name], tensor) for name, tensor in wanted.items())
        assert "not those of its configuration 1 not there: lm_head.weight" in found["headless"]
        assert "weights of another shape" in found["cut"] and "model.norm.weight" in found["cut"]
        assert all(torch.equal(found["masked"][n], t) for n, t in encoder.items() if "pooler" not in n)
