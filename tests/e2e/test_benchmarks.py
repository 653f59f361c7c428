"""benchmarks/step.py and scaling.py in small: the keys that are compared, exactness, and what they count."""

from __future__ import annotations

import json
import sys

import pytest
from commands import ROOT, execute

KEYS = {
    "speedup_vs_naive",
    "exact_speedup_vs_naive",
    "posterior_speedup_vs_naive",
    "per_cell_speedup_vs_padded",
    "positive_only_speedup",
    "answer_only_speedup",
    "useful_flop_rate",
    "max_relative_gradient_error",
}


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    file = tmp_path_factory.mktemp("step") / "step.json"
    size = ["--batch", "4", "--passage", "24", "--query", "5", "--answer", "6", "--repeats", "1", "--no_memory"]
    shown = execute([sys.executable, ROOT / "benchmarks/step.py", *size, "--json", file]).stdout
    return json.loads(file.read_text()), shown


def test_all_keys_are_there_and_the_exact_ways_are_exact(step):
    found, shown = step
    assert found.keys() >= KEYS and all(found[key] > 0 for key in KEYS)
    assert found["max_relative_gradient_error"] <= 3e-5
    assert set(found["gradient_errors"]) == {"one pass", "exact", "posterior, all kept", "positive only"}
    for key in KEYS:
        assert key in shown


def test_counted_flops_by_hand(step):
    """GPT-2's tiny shape: 12 d^2 weights a layer, logits at answers, d = 256, 4 layers, 8000 words; the retriever's
    part is the same in all."""
    flops = step[0]["flops"]
    naive_tokens, shared_tokens = 16 * 35, 4 * 24 + 16 * 10
    body = 6 * 4 * 12 * 256**2
    pairs_naive, pairs_shared = 16 * 35 * 36 / 2, 4 * 24 * 25 / 2 + 16 * (10 * 24 + 10 * 11 / 2)
    attention = 14 * 256 * 4  # the flash kernel's backward computes the scores again
    wanted = body * (naive_tokens - shared_tokens) + attention * (pairs_naive - pairs_shared)
    # logits of the naive way: one place more a cell than there are answer tokens
    wanted += 6 * 256 * 8000 * 16
    assert flops["naive"] - flops["one pass"] == pytest.approx(wanted, rel=0.03)
    assert flops["one pass"] < flops["exact"] < 1.45 * flops["one pass"]
    assert flops["sample"] < flops["exact"] and flops["positive only, answer tokens"] < flops["positive only"]


@pytest.mark.slow
def test_a_child_prints_its_memory():
    size = ["--batch", "2", "--passage", "24", "--query", "5", "--answer", "6", "--child"]
    for name in ("naive", "exact"):
        shown = execute([sys.executable, ROOT / "benchmarks/step.py", *size, name]).stdout
        found = json.loads(shown.strip().splitlines()[-1])
        assert found.keys() == {"peak_mb", "activations_mb"} and found["peak_mb"] > 0


@pytest.fixture(scope="module")
def scaling(tmp_path_factory):
    file = tmp_path_factory.mktemp("scaling") / "scaling.json"
    size = ["--ranks", "1", "2", "--runs", "1", "--steps", "12", "--repeats", "1"]
    shown = execute([sys.executable, ROOT / "benchmarks/scaling.py", *size, "--json", file], timeout=600).stdout
    return json.loads(file.read_text()), shown


@pytest.mark.slow
def test_counted_bytes_are_the_planned_ones(scaling):
    found, shown = scaling
    by_ranks = found["bytes_per_step_by_ranks"]
    assert by_ranks["1"] == 0 < by_ranks["2"] and "bytes_error" in shown
    assert found["bytes_error"] < 0.03
    counted, planned = (found["bytes_per_step"][kind] for kind in ("counted", "planned"))
    assert counted["world"].keys() == {"1", "2"} and planned["world"].keys() == {"1", "2", "8", "64", "512"}
    of_the_pool = [each["world"]["2"] - each["rank"]["2"] for each in (counted, planned)]
    assert of_the_pool[1] == pytest.approx(of_the_pool[0], rel=0.05), "embeddings, candidates, log-probabilities"


@pytest.mark.slow
def test_bytes_at_stage_3_are_the_planned_ones(tmp_path):
    argv = ["--parts", "bytes", "--stage", "3", "--ranks", "1", "2", "--json", tmp_path / "scaling.json"]
    execute([sys.executable, ROOT / "benchmarks/scaling.py", *argv])
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert found["bytes_stage"] == 3 and found["bytes_error"] < 0.01
    by_ranks = found["bytes_per_step_by_ranks"]
    assert by_ranks["1"] == 0 < by_ranks["2"] == found["bytes_per_step"]["counted"]["world"]["2"]


def test_a_benchmark_that_fails_says_so():
    """At a stage that there is not: its exit code, rather than figures that are null."""
    argv = ["--parts", "bytes", "--stage", "4", "--ranks", "1"]
    assert "failed" in execute([sys.executable, ROOT / "benchmarks/scaling.py", *argv], code=1).stderr


@pytest.mark.slow
def test_the_index_keeps_its_promises(scaling):
    found, _ = scaling
    assert found["sharded_search_equal"] is True and found["refresh_same_loss"] is True
    assert 0 <= found["refresh_stall_fraction"] < 1


@pytest.mark.slow
def test_the_planned_memory_is_measured(scaling):
    found, _ = scaling
    assert 0 <= found["plan_memory_error"] < 0.2
    (row,) = found["plan_memory"]
    assert row["error"] == pytest.approx(row["planned_mb"] / row["measured_mb"] - 1)
    assert found["planned"].keys() == {"pools", "stages", "corpora"}
