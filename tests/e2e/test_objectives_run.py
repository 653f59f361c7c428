"""Every objective and every choice that changes the step, each for two steps on small labelled rows."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from commands import ROOT, lines, results
from many_runs import Runs
from safetensors.torch import load_file
from together import marked

from ds_rag.config.objectives import OBJECTIVES

QUICK = "--max_steps 2 --per_device_train_batch_size 4 --learning_rate 1e-3 --save_steps 0 --refresh_index 0"
QUICK += " --max_query_length 32 --max_passage_length 32 --max_answer_length 4 --max_new_tokens 4 --candidates 4"

VARIANTS: dict[str, str] = {f"objective {name}": f"--objective {name}" for name in OBJECTIVES}
VARIANTS |= {
    f"reader {kind}": f"--objective pdist --reader_loss {kind} --target_temperature 0.5"
    for kind in ("posterior", "none")
}
VARIANTS |= {f"freeze {name}": f"--freeze {name}" for name in ("retriever", "generator")}
VARIANTS |= {f"zero{stage}": f"--deepspeed ds_configs/zero{stage}.json" for stage in range(4)}
VARIANTS |= {f"bf16 zero{stage}": f"--bf16 --deepspeed ds_configs/zero{stage}.json" for stage in range(4)}
VARIANTS["offload"] = "--deepspeed ds_configs/zero3_offload.json"
VARIANTS |= {
    "mixed stages": "--deepspeed_retriever ds_configs/zero0.json --deepspeed_generator ds_configs/zero1.json",
    "accumulation": "--gradient_accumulation_steps 2",
    "no clipping": "--max_grad_norm 0",
    "checkpointing": "--gradient_checkpointing",
    "pool prior": "--prior pool --candidates 2",
    "one pass": "--generator_backward one_pass",
    "exact": "--generator_backward exact --micro_cells 5",
    "posterior": "--generator_backward posterior --posterior_threshold 0.2",
    "sample": "--generator_backward sample --objective rag_token",
    "tight memory": "--memory_budget 0.0001",
    "plain sequences": "--share_prefixes false --generator_backward exact",
    "retriever chunks": "--retriever_chunk 3",
    "retriever chunks of two encoders": "--retriever_chunk 3 --encoders two --learn_temperature",
    "pool of the world": "--pool world",
    "answer tokens": "--objective positive_only --lm_tokens answer",
    "all candidates": "--candidates all",
    "contrastive": "--contrastive_weight 0.5",
    "contrastive symmetric": "--contrastive_weight 0.5 --contrastive_symmetric --objective emdr2",
    "mean answer": "--answer_logprob mean",
    "two encoders": "--encoders two",
    "query side": "--train_side query",
    "learned temperature": "--learn_temperature --temperature 0.1",
    "cls pooling": "--pooling cls --normalize false --query_prefix q: --passage_prefix p:",
    "template": "--prompt_template {query}|{passage}=",
    "warm-up": "--lm_warmup_steps 2 --warmup_steps 1 --lr_scheduler_type cosine",
    "epochs": "--max_steps -1 --num_train_epochs 0.2",
    "decode top1": "--decode top1 --top_k 1",
    "hnsw": "--index_factory hnsw --refresh_index 1",
    "tensorboard": "--report_to tensorboard",
    "no evaluation": "--no-eval",
    "index candidates": "--candidates_from index --index_candidates 3 --refresh_index 1",
    "index and own candidates": "--candidates_from both --index_candidates 3 --refresh_index 1",
    "words' candidates": "--candidates_from bm25 --index_candidates 3 --refresh_index 1",
    "words and index": "--candidates_from index,bm25 --index_candidates 3 --refresh_index 1",
    "gated": "--gate_gain 0.0 --contrastive_weight 0.1 --freeze generator",
    "hard negatives": "--candidates_from index --objective infonce --index_candidates 3 --refresh_index 0",
}


# Engines of each stage and precision are held against plain PyTorch in tests/distributed/, too.
SLOW = {"zero1", "offload", "bf16 zero0", "bf16 zero1", "bf16 zero3", "mixed stages", "tensorboard", "decode top1"}
SLOW |= {"retriever chunks of two encoders", "contrastive symmetric", "hnsw", "zero0", "words' candidates"}
# Steps are held against plain autograd in tests/unit/step/test_train_step.py; zero2 is what runs without a file use.
SLOW |= {"zero2", "reader posterior", "one pass", "retriever chunks", "pool of the world", "answer tokens"}
SLOW |= {"objective rag_token", "objective replug_lsr", "checkpointing", "no clipping", "all candidates"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, rows) -> Runs:
    data = ["--train_data", str(rows / "train.jsonl"), "--corpus", str(rows / "passages.jsonl")]
    evaluation = ["--eval_data", str(rows / "dev.jsonl")]
    flags = {}
    for name, text in VARIANTS.items():
        own = [word for word in text.split() if word != "--no-eval"]
        flags[name] = [*QUICK.split(), *data, *(evaluation if "--no-eval" not in text else []), *own]
    return Runs(tmp_path_factory.mktemp("runs"), flags, SLOW, [sys.executable])


@pytest.mark.parametrize("name", marked(VARIANTS, SLOW))
def test_runs_to_its_end(runs, name):
    run = runs[name]
    assert not (run / "failed.txt").exists(), (run / "failed.txt").read_text()
    assert (run / "report.html").exists() and results(run)["steps"] == 2
    steps = lines(run)
    assert [line["step"] for line in steps] == [1, 2]
    for line in steps:
        assert math.isfinite(line["loss"]) and line["grad_norm"] > 0 and line["skipped"] == 0
        shares = [value for key, value in line.items() if key.startswith("grad_share/")]
        assert sum(shares) == pytest.approx(1.0, abs=1e-3)


def test_what_is_left_out_is_logged(runs):
    for line in lines(runs["posterior"]):
        assert 0 < line["kept_cells"] <= 1 and 0 <= line["dropped_mass"] < 1
    for line in lines(runs["sample"]):
        assert line["kept_cells"] == pytest.approx(0.25) and "dropped_mass" not in line
    assert not any("kept_cells" in line for line in lines(runs["exact"]))


def test_the_way_that_was_chosen_is_said(runs):
    assert "generator  one pass:" in (runs["accumulation"] / "console.txt").read_text()
    assert "generator  two passes:" in (runs["tight memory"] / "console.txt").read_text()
    assert "generator  exact: chunks of up to" in (runs["plain sequences"] / "console.txt").read_text()


def weights(run: Path, model: str) -> bytes:
    return (run / model / "model.safetensors").read_bytes()


def loss(runs: Path, name: str) -> list[float]:
    return [line["loss"] for line in lines(runs[name])]


def test_what_is_frozen_does_not_move_and_the_other_does(runs):
    """Against the run with reader_loss none, whose generator does not learn either."""
    start = weights(runs["freeze generator"], "generator")
    assert weights(runs["reader none"], "generator") == start
    for name in ("freeze retriever", "objective rag_sequence", "objective pdist"):
        assert weights(runs[name], "generator") != start
    assert weights(runs["freeze generator"], "retriever") != weights(runs["freeze retriever"], "retriever")


def test_infonce_has_no_generator(runs):
    run = runs["objective infonce"]
    assert not (run / "generator").exists() and not (run / "deepspeed_generator.json").exists()
    assert "exact_match" not in results(run)["after"] and "recall@1" in results(run)["after"]


SAME = ["zero0", "zero1", "zero2", "zero3", "offload", "mixed stages", "checkpointing", "decode top1", "tensorboard"]


@pytest.mark.parametrize("name", marked(SAME, SLOW))
def test_stages_and_recomputation_change_nothing_in_fp32(runs, name):
    assert loss(runs, name) == pytest.approx(loss(runs, "objective rag_sequence"), rel=1e-5)


@pytest.mark.parametrize("name", marked([f"bf16 zero{stage}" for stage in range(4)], SLOW))
def test_bf16_is_near_fp32_and_not_fp32(runs, name):
    found, wanted = loss(runs, name), loss(runs, "objective rag_sequence")
    assert found == pytest.approx(wanted, rel=0.02) and found != pytest.approx(wanted, rel=1e-6)
    assert json.loads((runs[name] / "deepspeed_retriever.json").read_text())["bf16"]["enabled"]


def test_what_must_differ_differs(runs):
    """Each choice reaches the loss; else the run would only show that a flag is accepted."""
    base = loss(runs, "objective rag_sequence")
    for name in ("pool prior", "contrastive", "mean answer", "two encoders", "learned temperature"):
        assert loss(runs, name)[1] != pytest.approx(base[1], rel=1e-7), name
    for name in ("index candidates", "index and own candidates"):
        assert loss(runs, name)[0] != pytest.approx(base[0], rel=1e-4), name
    # A new generator hardly tells passages apart: which are read shows in the prior over them.
    from_index, and_own = (lines(runs[f"index {x}candidates"])[0]["prior_entropy"] for x in ("", "and own "))
    assert from_index != pytest.approx(and_own, rel=1e-2)
    assert loss(runs, "hard negatives")[0] != pytest.approx(loss(runs, "objective infonce")[0], rel=1e-3)
    for name in ("cls pooling", "template", "warm-up", "accumulation"):
        assert loss(runs, name)[1] != pytest.approx(base[1], rel=1e-7), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all candidates", "objective rag_token", "no clipping"])
def test_what_else_must_differ_differs(runs, name):
    assert loss(runs, name)[1] != pytest.approx(loss(runs, "objective rag_sequence")[1], rel=1e-7)


def test_the_warm_up_is_reported_as_such(runs):
    found = lines(runs["warm-up"], "lm_warmup")
    assert [line["step"] for line in found] == [1, 2] and all(0 < line["loss"] < 10 for line in found)
    assert results(runs["warm-up"])["lm_warmup_steps"] == 2
    assert "language modelling" in (runs["warm-up"] / "generator" / "README.md").read_text()
    assert "language modelling" not in (runs["template"] / "generator" / "README.md").read_text()


def test_each_terms_share_of_the_gradient_is_logged(runs):
    def terms(name: str) -> set[str]:
        return {k.removeprefix("grad_share/") for k in lines(runs[name])[0] if k.startswith("grad_share/")}

    assert terms("contrastive") == {"rag_sequence", "contrastive"}
    assert terms("objective positive_only") == {"lm", "doc_prior", "infonce"}
    assert terms("objective pdist") == {"pdist", "reader"}
    assert terms("reader none") == {"pdist"}


def test_two_encoders_and_the_temperature_are_saved(runs):
    assert (runs["two encoders"] / "retriever" / "passage_encoder" / "model.safetensors").exists()
    settings = json.loads((runs["learned temperature"] / "retriever" / "ds_rag.json").read_text())
    assert settings["temperature"] != 0.1 and settings["temperature"] == pytest.approx(0.1, rel=0.05)
    plain = json.loads((runs["cls pooling"] / "retriever" / "ds_rag.json").read_text())
    assert (plain["pooling"], plain["normalize"], plain["query_prefix"]) == ("cls", False, "q:")


def test_the_passages_of_query_side_training_stay_as_they_were(runs):
    """Passage encoder and index are those of a run that does not train the retriever at all; the queries' are not."""
    side, frozen = (runs[name] for name in ("query side", "freeze retriever"))
    start, kept, trained = (
        load_file(folder / "model.safetensors")
        for folder in (frozen / "retriever", side / "retriever/passage_encoder", side / "retriever")
    )
    assert start.keys() == kept.keys() == trained.keys()
    assert all(torch.equal(start[name], kept[name]) for name in start)
    assert any(not torch.equal(start[name], trained[name]) for name in start)
    vectors = [run / "index/vectors.npy" for run in (side, frozen, runs["two encoders"])]
    assert vectors[0].read_bytes() == vectors[1].read_bytes() != vectors[2].read_bytes()


def test_how_stale_the_index_is_and_how_often_it_holds_a_positive_is_logged(runs):
    for name, ages in (("index candidates", [0, 0]), ("hard negatives", [0, 1])):
        assert [line["index_age"] for line in lines(runs[name])] == ages
        assert [line["step"] for line in lines(runs[name], "candidates")] == [0, 1][: 2 - ages[1]]
        assert all(0 < line["retrieved_positive"] < 1 for line in lines(runs[name], "candidates"))
    assert not any("index_age" in line for line in lines(runs["no evaluation"]))


def test_without_evaluation_rows_there_are_no_figures(runs):
    found = results(runs["no evaluation"])
    assert found["before"] == found["after"] == {}
    assert (runs["no evaluation"] / "index" / "index.faiss").exists()


@pytest.mark.slow
def test_tensorboard_has_its_file(runs):
    assert list((runs["tensorboard"] / "tensorboard").glob("events.*"))


def test_every_shipped_deepspeed_file_is_used_here():
    used = " ".join(VARIANTS.values())
    shipped = {f.relative_to(ROOT).as_posix() for f in (ROOT / "ds_configs").glob("*.json")}
    assert shipped and all(name in used for name in shipped)
