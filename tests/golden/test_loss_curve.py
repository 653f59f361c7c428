"""The first twelve steps of the built-in run, against a stored curve.

A change that only reshapes leaves the curve as it is. One that is meant to change it (defaults, the almanac, the
models' configurations, the libraries' versions) is followed by

    python tests/golden/test_loss_curve.py        # writes quickstart.json anew

and the commit says why. Fixed seed, float32, one thread, no GPU. Another machine's BLAS and vector units sum in
another order: two threads and plain SSE instead of one and AVX2 moved no value by more than 3e-7 of itself.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STORED = Path(__file__).with_name("quickstart.json")
FLAGS = (
    "--seed 0 --max_steps 12 --bf16 false --save_steps 0 --refresh_index 0 --max_eval_samples 8 --eval_answers false"
)
TOLERANCE = 1e-3
KEPT = ("loss", "prior_entropy", "posterior_entropy", "embedding_spread", "grad_norm")


# Other ways to compute the same steps. (`sample` is right on average only.)
WAYS = {
    "one pass": "--generator_backward one_pass",
    "exact": "--generator_backward exact --micro_cells 60",
    "posterior, all kept": "--generator_backward posterior --posterior_threshold 0",
    "tight memory": "--memory_budget 0.02",
    "plain sequences": "--share_prefixes false",
    "retriever chunks": "--retriever_chunk 50",
    "pool of the world": "--pool world",
}


def curve(*more: str) -> list[dict[str, float]]:
    """The kept values of each step, by the real command."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "launch/train.py", "--output_dir", folder, *FLAGS.split(), *more],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=300,
        )
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in KEPT} for line in lines if line["kind"] == "train"]


@pytest.fixture(scope="module")
def found() -> list[dict[str, float]]:
    return curve()


def compare(found: list[dict[str, float]]) -> None:
    stored = json.loads(STORED.read_text())
    assert len(found) == len(stored) == 12
    for step, (now, then) in enumerate(zip(found, stored, strict=True), start=1):
        assert now == pytest.approx(then, rel=TOLERANCE), f"step {step}"


def test_the_curve_is_the_stored_one(found):
    compare(found)


# Their gradients are held against one graph in tests/unit/step/test_train_step.py, too.
@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_stored_curve(way):
    compare(curve(*WAYS[way].split()))


def test_the_curve_falls_far_more_than_the_tolerance_allows(found):
    """Else another learning rate, or none, would pass for the same curve."""
    values = [line["loss"] for line in found]
    assert all(math.isfinite(v) for v in values)
    assert values[-1] < 0.7 * values[0]
    assert all(abs(b - a) > 5 * TOLERANCE * a for a, b in pairwise(values))


if __name__ == "__main__":
    STORED.write_text(json.dumps(curve(), indent=1) + "\n")
    print(f"wrote {STORED}")
