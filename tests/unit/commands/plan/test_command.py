"""`ds-rag plan` itself: what it prints and writes, and its errors."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ds_rag.commands.cli import arguments, main, run
from ds_rag.commands.plan.hardware import GPUS
from ds_rag.commands.plan.request import read_request
from ds_rag.config.flags import parse
from ds_rag.runtime.errors import UserError

QUESTION = ["--retriever", "bge-large", "--generator", "llama-8b", "--passages", "21e6"]


def test_the_question(tmp_path, capsys):
    assert main(["plan", *QUESTION, "--json", str(tmp_path / "plan.json")]) == 0
    printed = capsys.readouterr().out
    for words in ("Recommended, and why", "Ways to train on h100", "by ZeRO stage", "3+offload", "ivfpq", "torchrun"):
        assert words in printed
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found.keys() == {"models", "ways", "stages", "variants", "recommended", "index"}
    assert found["models"]["retriever"]["parameters"] == 335_141_888
    assert [row["stages"] for row in found["stages"]][:5] == [[s] * 2 for s in ("0", "1", "2", "3", "3+offload")]
    best = found["recommended"]
    assert best["gpus"] == found["ways"][0]["gpus"] and best["command"] in printed.replace("\n", " ")
    assert f"{found['index']['encode_gpu_hours']:,.2f} GPU-hours" in printed
    assert {"offload", "LoRA, generator"} <= best["reasons"].keys()
    assert {(row["checkpointing"], row["micro_cells"] > 0) for row in found["variants"]} == {
        (again, chunked) for again in (True, False) for chunked in (True, False)
    }
    assert all(reason in printed for reason in best["reasons"].values())


def test_the_example_in_the_docs_is_what_is_printed(capsys):
    page = (Path(__file__).resolve().parents[4] / "docs/scaling.md").read_text()
    command, shown = re.search(r"## An example\n\n```bash\n(.*?)\n```\n\n```\n(.*?)```", page, re.DOTALL).groups()
    assert main(shlex.split(command)[1:]) == 0
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == shown.splitlines()


@pytest.mark.parametrize(("gpus", "machines"), [("8", None), ("12", 2), ("16", 2)])
def test_several_machines_are_said(gpus, machines, capsys):
    assert run("plan", [*QUESTION, "--gpus", gpus]) == 0
    printed = capsys.readouterr().out
    assert (f"each of {machines} machines, with its --node_rank" in printed) == (machines is not None)


def test_no_heavy_library_is_imported():
    code = f"from ds_rag.commands.cli import main; import sys; main(['plan', *{QUESTION!r}]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert "ds_rag.commands.plan.command" in modules
    assert not modules & {"torch", "transformers", "deepspeed", "faiss", "numpy"}


@pytest.mark.parametrize("gpu", GPUS)
def test_every_gpu_answers_for_small_models(gpu, capsys):
    assert run("plan", ["--retriever", "minilm", "--generator", "gpt2", "--gpu", gpu]) == 0
    assert f"Ways to train on {gpu}" in capsys.readouterr().out


def test_flags_reach_the_plan():
    argv = [*QUESTION, "--candidates", "all", "--pool", "world", "--gpus", "16", "--fp16", "--lora", "both"]
    argv += ["--generator_stage", "3", "--retriever_stage", "1", "--generator_backward", "exact", "--micro_cells", "4"]
    argv += ["--passages_per_row", "5", "--max_passage_length", "300", "--freeze", "none", "--gpu_memory", "40"]
    request = read_request(arguments("plan", argv))
    made = request.setup
    assert (made.work.candidates, made.work.world_pool, made.work.passages, made.work.passage) == (None, True, 5, 300)
    assert (made.world, made.precision, made.stages, made.micro_cells) == (16, "fp16", ("1", "3"), 4)
    assert made.lora == ("retriever", "generator") and request.limits.gpu == 40e9
    assert {"world", "stages", "pass", "candidates"} <= request.fixed.names


@pytest.mark.parametrize(
    ("gpu", "flags", "wanted"),
    [
        ("h100", [], "bf16"),
        ("t4", [], "fp32"),
        ("t4", ["--fp16"], "fp16"),
        ("h100", ["--bf16", "false"], "fp32"),
        ("h100", ["--fp16", "false"], "fp32"),
    ],
)
def test_precision_is_chosen_as_in_training(gpu, flags, wanted):
    assert read_request(arguments("plan", [*QUESTION, "--gpu", gpu, *flags])).setup.precision == wanted


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--retriever is missing"),
        (["--retriever", "minilm"], "--generator is missing"),
        (["--retriever", "mini", "--generator", "gpt2"], "no such model"),
        (["--retriever", "minilm", "--generator", "bge-base"], "not a causal LM"),
        ([*QUESTION, "--gpu", "h101"], "did you mean 'h100'"),
        ([*QUESTION, "--gpus", "1.5"], "a whole number from 1 to"),
        ([*QUESTION, "--mfu", "40"], "above 0 to 1"),
        ([*QUESTION, "--passages", "many"], "--passages: out of bounds"),
        ([*QUESTION, "--passages", "nan"], "--passages: out of bounds"),
        ([*QUESTION, "--generator_stage", "4"], "3\\+offload"),
        ([*QUESTION, "--lora", "all"], "unknown value"),
        ([*QUESTION, "--generator_backward", "sample"], "depends on the data"),
        ([*QUESTION, "--candidates", "none"], "--candidates"),
        ([*QUESTION, "--max_passage_length", "2000"], "more than bge-large can read"),
        ([*QUESTION, "--gpuz", "2"], "did you mean"),
        ([*QUESTION, "--gpus", "1"], None),
        ([*QUESTION, "--gpus", "1", "--gpu", "t4", "--host_memory", "16", "--lora", "both"], "nothing fits on t4"),
    ],
)
def test_wrong_input(argv, message, capsys):
    if message is None:  # offload or LoRA still fit
        assert run("plan", argv) == 0
        return
    with pytest.raises(UserError, match=message):
        run("plan", argv)


GIVEN = ["--train_data", "my rows.csv", "--query_column", "Frage", "--corpus", "c.jsonl", "--eval_data", "dev.jsonl"]
GIVEN += ["--on_bad_row", "skip", "--max_train_samples", "100", "--assume_first_positive"]


def printed_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert run("plan", argv) == 0
    words = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    return words[words.index("launch/train.py" if "launch/train.py" in words else "train") + 1 :]


def test_the_command_carries_the_rows_that_were_given(capsys):
    config = parse(printed_command([*QUESTION, *GIVEN], capsys))
    given = parse(GIVEN)
    assert config.data == given.data and config.explicit >= given.explicit


@pytest.mark.parametrize("rows", [[], ["--train_data", "builtin"], ["--corpus", "c.jsonl"], ["--query_column", "q"]])
@pytest.mark.parametrize("passages", [[], ["--passages", "1e6"]])
def test_without_rows_the_command_names_a_file_to_put_in(rows, passages, capsys):
    """And never trains the built-in rows, into runs/quickstart."""
    config = parse(printed_command([*QUESTION[:4], *passages, *rows], capsys))
    assert not config.is_builtin and config.data.train_data == "path/to/train.jsonl"
    assert config.run.output_dir != "runs/quickstart"
    if passages and "--corpus" not in rows:
        assert config.data.corpus == "path/to/passages.jsonl"
