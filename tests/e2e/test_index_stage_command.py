"""The index stage through the real command: beside training, by part, in shards, on two ranks."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from commands import TRAIN, call, execute, files, launcher, lines, losses, results, train

FLAGS = ["--max_steps", "8", "--refresh_index", "2", "--save_steps", "0", "--max_new_tokens", "2"]
BESIDE = ["--refresh_mode", "async", "--refresh_fraction", "0.3", "--index_shards", "keep"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "sync", *FLAGS)
    train(folder / "async", *FLAGS, *BESIDE)
    return folder


def test_training_and_its_end_are_the_same_to_the_last_bit(runs):
    """Losses, weights, final figures and vectors; the last index is whole."""
    assert losses(runs / "sync") == losses(runs / "async") and len(losses(runs / "sync")) == 8
    for file in ("retriever/model.safetensors", "generator/model.safetensors"):
        assert (runs / "sync" / file).read_bytes() == (runs / "async" / file).read_bytes(), file
    for part in ("before", "after", "samples"):
        assert results(runs / "sync")[part] == results(runs / "async")[part]
    vectors = np.load(runs / "sync/index/vectors.npy")
    kept, numbers = (np.load(runs / f"async/index/shard-0-of-1.{x}") for x in ("npy", "numbers.npy"))
    assert np.array_equal(vectors[numbers], kept) and sorted(numbers.tolist()) == list(range(1600))


def test_what_is_logged(runs):
    for name in ("sync", "async"):
        refreshes, evaluations = lines(runs / name, "refresh"), lines(runs / name, "eval")
        assert [x["step"] for x in refreshes] == [x["step"] for x in evaluations] == [0, 2, 4, 6, 8]
        assert refreshes[-1]["landed"] == 8 and refreshes[-1]["index_age_max"] == 0
        for x, y in zip(refreshes, evaluations, strict=True):
            assert y.get("landed", y["step"]) == x["landed"] and x["stall_seconds"] <= x["seconds"] + 1e-3
            assert {"index_age", "index_age_p50", "index_age_p90", "index_age_max"} <= set(x)
        assert 0 <= results(runs / name)["refresh_stall_fraction"] < 1
        assert "waiting for the index" in (runs / name / "report.html").read_text()
    assert all(x["landed"] == x["step"] for x in lines(runs / "sync", "refresh"))
    partial = lines(runs / "async", "refresh")[1:-1]
    assert all(x["step"] < x["landed"] <= x["step"] + 2 for x in partial)
    assert all(x["encoded"] == pytest.approx(0.3) and x["drift"] >= 0 for x in partial)


def test_files(runs):
    """`keep` has its own; nothing of the making is left."""
    merged, kept = (files(runs / name) for name in ("sync", "async"))
    assert merged - kept == {"index/vectors.npy", "index/index.faiss"}
    assert kept - merged == {f"index/shard-0-of-1.{x}" for x in ("npy", "numbers.npy", "faiss")}


def test_an_index_in_shards_is_asked_and_made_again(runs, tmp_path):
    shutil.copytree(runs / "async", tmp_path / "run")
    found = []
    for name in ("sync", "async"):
        call(["ask", runs / name, "who leads zor via ?", "--json", tmp_path / f"{name}.json"])
        found.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert found[0] == found[1]
    call(["index", "--run", tmp_path / "run", "--index_shards", "merge"])
    assert (tmp_path / "run/index/index.faiss").exists() and not list((tmp_path / "run/index").glob("shard-*"))
    assert not (tmp_path / "run/index.partial").exists()


@pytest.mark.slow
def test_two_ranks_each_with_its_shard(runs, tmp_path):
    command = [*launcher("torchrun", "--nproc_per_node", "2"), "--output_dir", tmp_path / "run"]
    execute([*command, "--max_eval_samples", "8", *FLAGS, *BESIDE, "--per_device_train_batch_size", "16"])
    manifest = json.loads((tmp_path / "run/index/manifest.json").read_text())
    assert manifest["shards"] == 2 and manifest["count"] == 1600
    assert [x["step"] for x in lines(tmp_path / "run", "refresh")] == [0, 2, 4, 6, 8]
    call(["ask", tmp_path / "run", "who leads zor via ?"])


def test_the_best_model_and_async_exclude_each_other(tmp_path):
    argv = [*TRAIN, "--output_dir", tmp_path / "run", "--refresh_mode", "async", "--load_best_model_at_end"]
    assert "--load_best_model_at_end" in execute(argv, code=2).stderr


@pytest.mark.slow
def test_a_second_run_takes_its_vectors_from_the_cache_and_so_does_an_evaluation(tmp_path):
    """Of the weights at the beginning and at the end, which an evaluation opens from the run's folder."""
    flags = ["--max_steps", "2", "--save_steps", "0", "--eval_answers", "false", "--vector_cache", tmp_path / "cache"]
    first, second = (" ".join(train(tmp_path / name, *flags).stdout.split()) for name in ("one", "two"))
    assert first.count("1,600 passages: 1,600 encoded, 0 vectors from") == 2
    assert second.count("1,600 passages: vectors from") == 2 and "encoded, " not in second
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    vectors = [np.load(tmp_path / name / "index/vectors.npy") for name in ("one", "two")]
    assert np.array_equal(*vectors) and results(tmp_path / "one")["after"] == results(tmp_path / "two")["after"]
    shutil.rmtree(tmp_path / "two/index")
    said = call(["evaluate", "--run", tmp_path / "two", *flags[-4:]]).stdout
    assert "1,600 passages: vectors from" in " ".join(said.split())
