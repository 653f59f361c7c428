"""Saving and going on through the real command: the same run, bit by bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import files, lines, losses, results, train

FLAGS = ["--refresh_index", "0", "--save_steps", "4", "--eval_answers", "false", "--learn_temperature"]
FLAGS += ["--lexical_prior", "0.5"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Eight steps at one go."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(folder, "--max_steps", "8", *FLAGS)
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """The first four of them."""
    folder = tmp_path_factory.mktemp("runs") / "half"
    train(folder, "--max_steps", "4", *FLAGS)
    return folder


def checkpoints(run: Path) -> list[str]:
    return sorted(f.name for f in (run / "checkpoints").iterdir() if f.is_dir())


def test_four_steps_and_four_more_are_eight(whole, half, tmp_path):
    """Losses, weights, index and metrics are equal to the last bit (fp32 on a CPU, one thread)."""
    run = tmp_path / "run"
    shutil.copytree(half, run)
    printed = train(run, "--max_steps", "8", *FLAGS, "--resume", "auto").stdout
    assert "at step 4" in printed
    assert losses(run) == losses(whole) and sorted(losses(run)) == list(range(1, 9))
    for file in ("retriever/model.safetensors", "generator/model.safetensors", "index/vectors.npy"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file
    assert results(run)["after"] == results(whole)["after"]
    assert results(run)["before"] == results(whole)["before"]
    assert [line["step"] for line in lines(run)] == list(range(1, 9)), "one line a step"
    assert checkpoints(run) == ["step-4", "step-8"]


def test_from_a_given_checkpoint_into_a_new_folder(whole, half, tmp_path):
    run = tmp_path / "run"
    train(run, "--max_steps", "8", *FLAGS, "--resume_from_checkpoint", half / "checkpoints" / "step-4")
    assert losses(run) == {step: loss for step, loss in losses(whole).items() if step > 4}
    assert (run / "retriever/model.safetensors").read_bytes() == (whole / "retriever/model.safetensors").read_bytes()
    assert checkpoints(half) == ["step-4"], "the run it came from is left alone"


def test_a_finished_run_stays_as_it_is(half, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(half, run)
    train(run, "--max_steps", "4", *FLAGS, "--resume", "auto")
    assert files(run) == files(half) and losses(run) == losses(half)
    for file in ("retriever/model.safetensors", "generator/model.safetensors", "index/vectors.npy"):
        assert (run / file).read_bytes() == (half / file).read_bytes(), file
    assert results(run)["after"] == results(half)["after"]


def test_auto_starts_where_there_is_nothing(half, tmp_path):
    run = tmp_path / "run"
    train(run, "--max_steps", "1", *FLAGS, "--resume", "auto")
    assert losses(run) == {1: losses(half)[1]}


def test_a_path_without_a_checkpoint_is_an_error_and_no_start_at_step_0(tmp_path):
    failed = train(tmp_path / "run", "--max_steps", "4", *FLAGS, "--resume", tmp_path, code=2)
    assert "no checkpoint there" in failed.stderr and "Traceback" not in failed.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_other_models_than_the_checkpoints_are_an_error(half, tmp_path):
    flags = ["--max_steps", "8", *FLAGS, "--resume", half / "checkpoints" / "step-4"]
    failed = train(tmp_path / "run", *flags, "--freeze", "generator", code=2)
    told = "the checkpoint of another run", "--freeze: 'none' then, 'generator' now"
    assert all(text in failed.stderr for text in told)
    forced = train(tmp_path / "again", *flags, "--freeze", "generator", "--resume_changed", "true", code=2)
    assert "holds other models" in forced.stderr and "--freeze" in forced.stderr


def test_the_best_checkpoint_is_exported_and_training_stops_early(tmp_path):
    """A learning rate that ruins the models: the best figures are those before training, and no gain follows."""
    run = tmp_path / "run"
    flags = ["--max_steps", "12", "--refresh_index", "1", "--save_steps", "4", "--eval_answers", "false"]
    flags += ["--load_best_model_at_end", "--early_stopping_patience", "3", "--metric_for_best_model", "mrr@10"]
    printed = train(run, *flags, "--learning_rate", "0.5", "--retriever_learning_rate", "0.5", "--warmup_steps", "0")
    evaluations = {line["step"]: line["mrr@10"] for line in lines(run, "eval")}
    best = max(evaluations, key=lambda step: (evaluations[step], -step))
    last = max(losses(run))
    assert last == best + 3 < 12 and f"stopped early at step {last}" in printed.stdout
    assert f"exporting step {best}" in printed.stdout
    found = results(run)
    assert (found["steps"], found["best_step"]) == (last, best)
    assert found["after"]["mrr@10"] == pytest.approx(evaluations[best])
    assert f"step-{best}" in checkpoints(run)
    assert f"{best} optimizer steps" in (run / "retriever" / "README.md").read_text()
    state = json.loads((run / "checkpoints" / f"step-{best}" / "state.json").read_text())
    assert state["best_step"] == best and state["best"] == pytest.approx(evaluations[best])
