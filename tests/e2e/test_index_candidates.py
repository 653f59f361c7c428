"""Training on queries and answers alone: the index supplies the passages. The real command, small."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from commands import call, execute, launcher, lines, losses, results

from ds_rag.data.almanac import make_world

RECIPE = ["--config", "ds_configs/recipes/quickstart.yaml", "--eval_answers", "false", "--candidates_from", "index"]


def put(folder: Path, name: str, objects: list[dict]) -> Path:
    (folder / name).write_text("".join(json.dumps(o) + "\n" for o in objects))
    return folder / name


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> list[str | Path]:
    """The flags of the built-in world as files: rows without any passage, and the corpus."""
    folder, world = tmp_path_factory.mktemp("bare"), make_world(0)
    train = put(folder, "train.jsonl", [{"query": r.query, "answer": r.answers[0]} for r in world.train])
    held = [{"query": r.query, "answer": r.answers[0], "positive": r.positives[0]} for r in world.evaluation]
    dev = put(folder, "dev.jsonl", held)
    corpus = put(folder, "passages.jsonl", [{"id": p.id, "text": p.text} for p in world.corpus])
    return ["--train_data", train, "--eval_data", dev, "--corpus", corpus]


def train(run: Path, bare: list[str | Path], *flags: str | Path, code: int = 0, launched: Sequence[str] = ()) -> str:
    argv = [*RECIPE, *bare, "--output_dir", run, *flags]
    done = execute([*launched, *argv], code) if launched else call(["train", *argv], code)
    return done.stdout if code == 0 else done.stderr


@pytest.mark.slow
def test_it_learns_to_retrieve_from_queries_and_answers_alone(bare, tmp_path):
    run = tmp_path / "run"
    printed = train(run, bare, "--max_steps", "75", "--refresh_index", "25", "--save_steps", "0")
    assert "8 candidates a query (the index supplies 8);" in printed
    steps, found = lines(run), results(run)
    assert steps[-1]["loss"] < 0.4 * steps[0]["loss"]
    assert found["after"]["recall@1"] > found["before"]["recall@1"] + 0.1
    assert [line["index_age"] for line in steps] == [step % 25 for step in range(75)]
    assert [line["step"] for line in lines(run, "candidates")] == [0, 25, 50]
    searched = sum(line["seconds"] for line in lines(run, "candidates") if line["step"])
    assert found["refresh_stall_fraction"] * found["loop_seconds"] > 0.9 * searched > 0, "training waits for them"
    assert all("retrieved_positive" not in line and line["distinct"] > 500 for line in lines(run, "candidates"))


LITTLE = ["--max_train_samples", "64", "--per_device_train_batch_size", "4", "--max_eval_samples", "8"]
RESUMED = [*LITTLE, "--refresh_index", "3", "--save_steps", "4"]


def test_a_resumed_run_reads_the_same_candidates(bare, tmp_path):
    """Saved between two refreshes (at 4, of 3) and at one that the first run had no more steps for (at 6)."""
    whole, half = tmp_path / "whole", tmp_path / "half"
    train(whole, bare, *RESUMED, "--max_steps", "8")
    for steps in ("4", "6", "8"):
        train(half, bare, *RESUMED, "--max_steps", steps, "--resume", "auto")
        if steps == "4":
            table = half / "checkpoints/step-4/candidates-3.npy"
            assert np.load(table).shape == (64, 8)
    assert losses(half) == losses(whole) and len(losses(half)) == 8
    assert {line["index_age"] for line in lines(half)} == {0, 1, 2}
    file = "retriever/model.safetensors"
    assert (half / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.slow
def test_two_ranks_and_no_evaluation(bare, tmp_path):
    """The refresh does not hang on evaluation rows; a pool of the world is one table's."""
    run, flags = tmp_path / "run", [*bare[:2], *bare[4:]]
    two = launcher("torchrun", "--nproc_per_node", "2")
    more = ["--pool", "world", "--max_steps", "3", "--refresh_index", "2", "--save_steps", "0"]
    train(run, flags, *LITTLE, *more, launched=two)
    assert [line["index_age"] for line in lines(run)] == [0, 1, 0]
    assert [line["step"] for line in lines(run, "candidates")] == [0, 2]
    assert not lines(run, "eval"), "there is nothing to evaluate on"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--candidates_from", "batch"], "--candidates_from index --corpus FILE"),
        (["--objective", "infonce"], "needs labelled positives"),
    ],
)
def test_rows_without_passages_are_refused_where_they_cannot_be_trained_on(bare, tmp_path, flags, says):
    assert says in train(tmp_path / "run", bare, *flags, "--max_steps", "1", code=2)


def test_without_a_corpus_there_is_nothing_to_retrieve(bare, tmp_path):
    message = train(tmp_path / "run", bare[:2], "--max_steps", "1", code=2)
    assert "found:" in message and "--corpus FILE" in message
