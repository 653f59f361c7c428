"""benchmarks/checkpoint_stall.py in small: its figures hang together. What they are, it prints."""

from __future__ import annotations

import json
import sys

import pytest
from commands import ROOT, execute


def test_a_save_beside_a_step(tmp_path):
    file = tmp_path / "stall.json"
    size = ["--sizes", "1M", "--repeats", "1", "--folder", tmp_path]
    shown = execute([sys.executable, ROOT / "benchmarks/checkpoint_stall.py", *size, "--json", file]).stdout
    found = json.loads(file.read_text())
    (one,) = found["sizes"].values()
    step, save = one["step_seconds"], one["save_seconds"]
    assert one["share_of_time"] == pytest.approx(save / (found["save_steps"] * step + save))
    assert one["save_bytes"] == pytest.approx(12 * one["parameters"], rel=0.05), "weights and two moments in fp32"
    assert one["deepspeed_bytes"] > one["save_bytes"], "DeepSpeed's holds the module's own weights too"
    assert "of time at 500" in shown and list(tmp_path.iterdir()) == [file]
