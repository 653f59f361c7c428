"""benchmarks/soak.py in small: kills at random, and what must be 0 is 0."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MUST_BE_0 = ("lost_checkpoints", "mismatches", "orphans", "leftovers", "wrong_exits")


@pytest.mark.parametrize(
    ("kills", "launched"),
    [pytest.param(*case, marks=pytest.mark.slow) for case in ((3, 0), (6, 0), (1, 1))],
)
def test_killed_at_random(tmp_path: Path, kills: int, launched: int) -> None:
    file = tmp_path / "soak.json"
    size = ["--kills", str(kills), "--launched", str(launched), "--seed", "1", "--folder", str(tmp_path / "runs")]
    command = [sys.executable, str(ROOT / "benchmarks/soak.py"), *size, "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert {key: found[key] for key in MUST_BE_0} == dict.fromkeys(MUST_BE_0, 0), found["problems"]
    assert found["kills"] == kills == sum(found["kills_by_place"].values()) and found["launcher_kills"] == launched
    assert "killed in" in done.stdout and not list((tmp_path / "runs").glob("run-*"))
