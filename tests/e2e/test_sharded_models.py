"""Pretrained folders on two ranks: every stage loads, trains, evaluates and saves the same, whole models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call, launcher, lines, results
from many_runs import Runs
from together import marked

from ds_rag.data.almanac import make_world
from ds_rag.models.tokenizer import train_tokenizer

QUICK = "--max_steps 2 --per_device_train_batch_size 3 --learning_rate 2e-3 --save_steps 0 --refresh_index 0"
QUICK += " --max_query_length 32 --max_passage_length 32 --max_answer_length 4 --max_new_tokens 4 --candidates 4"
QUICK += " --learn_temperature --temperature 0.2"
QUICK += " --adam_epsilon 1e-4"  # or gradients that are zero but for rounding would each make a full step
MIXED = "--deepspeed_retriever ds_configs/zero1.json --deepspeed_generator ds_configs/zero3.json"
CHUNKS = "--generator_backward exact --micro_cells 3 --retriever_chunk 4 --gradient_accumulation_steps 2"
DECODER = "--retriever DECODER --query_prefix find: --retriever_chunk 4"
ZERO = {stage: f"--deepspeed ds_configs/zero{stage}.json" for stage in (2, 3)}
LORA = "--lora both --lora_r 4 --lora_alpha 8"
# name -> flags, and the run whose losses and models it must repeat.
VARIANTS: dict[str, tuple[str, str | None]] = {
    "zero2": (ZERO[2], None),
    "zero3": (ZERO[3], "zero2"),
    "mixed": (MIXED, "zero2"),
    "offload": ("--deepspeed ds_configs/zero3_offload.json", "zero2"),
    "hpz": ("--deepspeed HPZ", "zero2"),
    "zero2 chunks": (f"{ZERO[2]} {CHUNKS}", None),
    "zero3 chunks": (f"{ZERO[3]} {CHUNKS}", "zero2 chunks"),
    "zero3 async": (f"{ZERO[3]} --refresh_mode async --refresh_index 1 --index_shards keep", "zero2"),
    "zero3 candidates": (f"{ZERO[3]} --refresh_index 1 --candidates_from both --pool world", "zero2 candidates"),
    "zero2 candidates": (f"{ZERO[2]} --refresh_index 1 --candidates_from both --pool world", None),
    "zero3 best": (f"{ZERO[3]} --refresh_index 1 --load_best_model_at_end --metric_for_best_model f1", None),
    "zero2 lora": (f"{ZERO[2]} {LORA}", None),
    "zero3 lora": (f"{ZERO[3]} {LORA}", "zero2 lora"),
    "zero3 lora generator": (f"{ZERO[3]} --lora generator --freeze retriever --learn_temperature false", None),
    "zero2 frozen generator": (f"{ZERO[2]} --objective replug_lsr --freeze generator", None),
    "zero3 frozen generator": (f"{ZERO[3]} --objective replug_lsr --freeze generator", "zero2 frozen generator"),
    "zero2 frozen retriever": (f"{ZERO[2]} --freeze retriever --learn_temperature false", None),
    "zero3 frozen retriever": (f"{ZERO[3]} --freeze retriever --learn_temperature false", "zero2 frozen retriever"),
    "zero2 decoder": (f"{ZERO[2]} {DECODER}", None),
    "zero3 decoder": (f"{ZERO[3]} {DECODER}", "zero2 decoder"),
    "zero3 decoder lora": (f"{ZERO[3]} {DECODER} --lora retriever --lora_target_modules q_proj,v_proj", None),
    "bf16 zero2": (f"--bf16 {ZERO[2]}", None),
    "bf16 zero3": (f"--bf16 {ZERO[3]}", None),
    "two encoders": (f"{ZERO[3]} --encoders two", None),
}
# Their ground is also that of tests/distributed/test_real_step.py and test_engine_state.py.
SLOW = {"offload", "hpz", "zero2 chunks", "zero3 chunks", "zero3 lora generator", "zero3 decoder lora", "zero3 best"}
SLOW |= {"zero3 frozen retriever", "zero3 async", "zero3 decoder", "mixed", "zero2 frozen retriever", "bf16 zero2"}
SAME = {name: base for name, (_, base) in VARIANTS.items() if base}
SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"max_position_embeddings": 128, "initializer_range": 0.2}


def save_models(folder: Path) -> None:
    """encoder, decoder and lm, each with the almanac's tokenizer."""
    import transformers

    torch.manual_seed(0)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for name, auto, kind, more in (
        ("encoder", "AutoModel", "bert", still),
        ("decoder", "AutoModel", "qwen2", {"num_key_value_heads": 2}),
        ("lm", "AutoModelForCausalLM", "llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    ):
        train_tokenizer([p.text for p in make_world(0).corpus], 512, folder / name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / name)
        ids = {key: getattr(tokenizer, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
        config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **SHAPE, **more, **ids)
        getattr(transformers, auto).from_config(config).save_pretrained(folder / name)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    hierarchical = json.loads(Path("ds_configs/zero3.json").read_text())
    hierarchical["zero_optimization"]["zero_hpz_partition_size"] = 2
    (folder / "hpz.json").write_text(json.dumps(hierarchical))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rows: Path, models: Path) -> Runs:
    places = {"DECODER": str(models / "decoder"), "HPZ": str(models / "hpz.json")}
    flags = {}
    for name, (text, _) in VARIANTS.items():
        own = [places.get(word, word) for word in text.split()]
        data = [f"--{kind}={rows / file}" for kind, file in FILES.items()]
        base = [f"--generator={models / 'lm'}"] + [f"--retriever={models / 'encoder'}"] * ("--retriever" not in own)
        flags[name] = [*QUICK.split(), *data, *base, *own]
    return Runs(tmp_path_factory.mktemp("runs"), flags, SLOW, launcher("torchrun", "--nproc_per_node", "2")[:-1])


FILES = {"train_data": "train.jsonl", "corpus": "passages.jsonl", "eval_data": "dev.jsonl"}


def loss(runs: Runs, name: str) -> list[float]:
    return [line["loss"] for line in lines(runs[name])]


def weights(run: Path, model: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = (run / model).glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("name", marked(VARIANTS, SLOW))
def test_runs_to_its_end(runs: Runs, name: str) -> None:
    run = runs[name]
    assert not (run / "failed.txt").exists(), (run / "failed.txt").read_text()
    assert results(run)["steps"] == 2 and results(run)["skipped_steps"] == 0
    assert len(set(loss(runs, name))) == 2


@pytest.mark.parametrize("name", marked(SAME, SLOW))
def test_the_same_losses_models_and_figures(runs: Runs, name: str) -> None:
    one, two = runs[name], runs[SAME[name]]
    assert loss(runs, name) == pytest.approx(loss(runs, SAME[name]), rel=2e-5)
    for model in ("retriever", "generator"):
        ours, theirs = weights(one, model), weights(two, model)
        assert ours.keys() == theirs.keys()
        for key, wanted in theirs.items():
            torch.testing.assert_close(ours[key], wanted, rtol=1e-3, atol=1e-4)
    assert results(one)["after"] == pytest.approx(results(two)["after"], abs=1e-6)


@pytest.mark.slow
def test_bf16_at_stage_3_is_near_stage_2(runs: Runs) -> None:
    assert loss(runs, "bf16 zero3") == pytest.approx(loss(runs, "bf16 zero2"), rel=0.01)


def test_bf16_at_stage_3_is_near_fp32(runs: Runs) -> None:
    found, wanted = loss(runs, "bf16 zero3"), loss(runs, "zero3")
    assert found == pytest.approx(wanted, rel=0.05) and found != pytest.approx(wanted, rel=1e-6)


def test_prefixes_are_shared_by_a_model_that_was_loaded_in_pieces(runs: Runs) -> None:
    for name in ("zero3", "bf16 zero3", "zero3 frozen generator"):
        assert "cannot share" not in (runs[name] / "console.txt").read_text(), name


def test_what_must_differ_differs(runs: Runs) -> None:
    base = loss(runs, "zero2")
    for name in ("zero2 lora", "zero2 decoder", "zero2 candidates", "two encoders"):
        assert loss(runs, name)[-1] != pytest.approx(base[-1], rel=1e-5), name


def test_adapters_are_saved_alone_and_open_as_models(runs: Runs, models: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModelForCausalLM

    run = runs["zero3 lora"]
    for model in ("retriever", "generator"):
        assert not (run / model / "model.safetensors").exists()
        assert all("lora_" in key for key in weights(run, model))
        named = json.loads((run / model / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert Path(named).parent == models.resolve()
    lm = AutoModelForCausalLM.from_pretrained(run / "generator")
    assert any(p.abs().sum() > 0 for name, p in lm.named_parameters() if "lora_B" in name)
    assert SentenceTransformer(str(run / "retriever"), device="cpu").encode(["who leads?"]).shape == (1, 32)


@pytest.mark.slow
def test_only_the_adapted_model_of_a_run_holds_an_adapter(runs: Runs) -> None:
    run = runs["zero3 lora generator"]
    assert (run / "generator" / "adapter_model.safetensors").exists()
    assert (run / "retriever" / "model.safetensors").exists()


def test_a_run_with_adapters_is_evaluated_and_merged(runs: Runs, rows: Path, tmp_path: Path) -> None:
    run = runs["zero3 lora"]
    call(["evaluate", "--run", run, "--json", tmp_path / "run.json"])
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["retrieval"] | found["answers"] == pytest.approx(results(run)["after"], abs=1e-6)
    call(["merge", "--run", run, "--out", tmp_path / "merged"])
    for model in ("retriever", "generator"):
        assert not any("lora_" in key for key in weights(tmp_path / "merged", model))
    folders = [f"--{model}={tmp_path / 'merged' / model}" for model in ("retriever", "generator")]
    flags = ["--data", rows / "dev.jsonl", "--corpus", rows / "passages.jsonl", "--max_new_tokens", "4"]
    call(["evaluate", *folders, *flags, "--json", tmp_path / "merged.json"])
    again = json.loads((tmp_path / "merged.json").read_text())
    assert again["retrieval"] == pytest.approx(found["retrieval"], abs=1e-6)
    refused = call(["merge", "--run", runs["zero2"]], code=2)
    assert "nothing to merge" in refused.stderr
