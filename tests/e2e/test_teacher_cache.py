"""`--teacher_cache` by the real commands: `ds-rag score` fills it, a run with the same flags reads from it."""

from __future__ import annotations

import math

import pytest
from commands import SMALL, call, execute, launcher, lines, losses, train

FLAGS = ["--freeze", "generator", "--max_train_samples", "24", "--per_device_train_batch_size", "4"]
FLAGS += ["--candidates", "4", "--eval_answers", "false", "--lexical_lines", "false", "--save_steps", "0"]
FLAGS += ["--lm_warmup_steps", "0", "--max_steps", "3"]
INDEX = ["--candidates_from", "index", "--index_candidates", "4", "--refresh_index", "2"]


def test_scores_filled_ahead_serve_a_run_that_trains_as_without_them(tmp_path):
    cache = ["--teacher_cache", tmp_path / "cache"]
    printed = call(["score", "--max_eval_samples", "8", *FLAGS, *cache]).stdout
    assert "96 of 96 pairs scored" in printed and "96 scores in" in printed
    again = call(["score", "--max_eval_samples", "8", *FLAGS, *cache, "--out", tmp_path / "scored.jsonl"]).stdout
    assert "0 of 96 pairs scored" in again and "24 rows with scores in" in again
    assert [f.name for f in (tmp_path / "cache").iterdir() if f.name.startswith(".")] == [], "nothing else is left"
    train(tmp_path / "plain", *FLAGS)
    done = train(tmp_path / "cached", *FLAGS, *cache)
    assert "96 stored scores in" in done.stdout
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)
    assert [line["scored"] for line in lines(tmp_path / "cached", "scores")] == [0]
    assert all(line["cached_cells"] == 1 for line in lines(tmp_path / "cached"))
    assert not any("cached_cells" in line for line in lines(tmp_path / "plain"))
    rows = ["--train_data", tmp_path / "scored.jsonl", "--teacher", "scores", "--candidates", "4", "--save_steps", "0"]
    taught = train(tmp_path / "taught", *rows, "--per_device_train_batch_size", "4", "--num_train_epochs", "1")
    assert len(losses(tmp_path / "taught")) == 6 and not (tmp_path / "taught" / "generator").exists(), taught.stdout
    assert all(math.isfinite(line["posterior_entropy"]) for line in lines(tmp_path / "taught"))


def test_a_refresh_scores_only_new_pairs(tmp_path):
    cache = ["--teacher_cache", tmp_path / "cache"]
    train(tmp_path / "run", *FLAGS, *INDEX, *cache)
    first, second = lines(tmp_path / "run", "scores")
    assert (first["step"], second["step"]) == (0, 2)
    assert first["scored"] == first["pairs"] > second["scored"], "of the second table some pairs are known"
    assert all(line["cached_cells"] == 1 for line in lines(tmp_path / "run"))


def test_without_a_place_for_scores_nothing_begins():
    assert "--teacher_cache DIR" in call(["score", *FLAGS], code=2).stderr


@pytest.mark.slow
def test_a_generator_that_two_ranks_shard(tmp_path):
    """Under ZeRO-3 every forward needs all ranks, also of one that has nothing to read."""
    flags = [*SMALL, *FLAGS, "--deepspeed", "ds_configs/zero3.json", "--candidates", "6"]
    for name, more in (("plain", []), ("first", ["--teacher_cache", "c"]), ("second", ["--teacher_cache", "c"])):
        more = [tmp_path / word if word == "c" else word for word in more]
        two = launcher("torchrun", "--nproc_per_node", "2")
        execute([*two, *flags, *more, "--output_dir", tmp_path / name])
    for name in ("first", "second"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)
    assert lines(tmp_path / "first", "scores")[0]["scored"] == 96
    assert lines(tmp_path / "second", "scores")[0]["scored"] == 0
    assert 0 < lines(tmp_path / "first")[0]["cached_cells"] < 1 == lines(tmp_path / "second")[0]["cached_cells"]
