"""A folder at stage 3: no rank ever holds the whole model, and together they hold what the folder says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks

from ds_rag.config import DataConfig, ModelConfig
from ds_rag.models.loading import load_generator, load_retriever
from ds_rag.models.sharded import count_of, is_sharded, whole_state

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
        whole.append(sum(p.numel() for module in born for p in module.parameters(recurse=False)))
        born.append(self)

    torch.nn.Module.__init__ = watch  # type: ignore[method-assign]
    try:
        generator = load_generator(flags, list, Path(folder), PIECES | {"bf16": {"enabled": precision == "bf16"}})
    finally:
        torch.nn.Module.__init__ = begin  # type: ignore[method-assign]
    retriever = load_retriever(flags, DataConfig(), list, Path(folder))
    return {
        "whole": sum(p.numel() for p in generator.lm.parameters()),
        "piece": sum(p.ds_tensor.numel() for p in generator.lm.parameters()),
        "most while loading": max(whole),
        "count": count_of(generator),
        "vocabulary": generator.vocabulary,
        "retriever sharded": is_sharded(retriever),
        "state": {k: v.clone() for k, v in whole_state(generator).items()},
        "rotary": generator.lm.model.rotary_emb.inv_freq.dtype,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    from ds_rag.data.world import make_world
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
