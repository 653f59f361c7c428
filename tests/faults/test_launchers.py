"""Row 11: a signal to the launcher of two ranks. Both launchers have their own ways of passing it on, or none."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from small_run import lines

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from commands import environment, launcher  # noqa: E402

from ds_rag.run.checkpoint import checkpoints  # noqa: E402

LAUNCHERS = {"torchrun": ["--nproc_per_node", "2"], "deepspeed": ["--num_accelerators", "2"]}


def ranks_of(run: Path) -> list[psutil.Process]:
    """Every process that trains into this folder, but for the launchers."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(run) in words and not {"deepspeed.launcher.launch"} & set(words) and "launch/train.py" in words[1:4]:
            found.append(process)
    return found


def wait_for(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("name", [pytest.param("torchrun", marks=pytest.mark.slow), "deepspeed"])
def test_row_11_sigterm_to_the_launcher(tmp_path: Path, flags: list[str], name: str) -> None:
    run = tmp_path / "run"
    argv = [*launcher(name, *LAUNCHERS[name]), "--output_dir", run, *flags, "--max_steps", "4000", "--save_steps", "0"]
    with (tmp_path / "console.txt").open("w") as console:
        process = subprocess.Popen([str(a) for a in argv], cwd=ROOT, env=environment(), stdout=console, stderr=console)
        try:
            assert wait_for(lambda: (run / "metrics.jsonl").exists() and len(lines(run, "train", "loss")) > 2, 120)
            assert len(ranks_of(run)) == 2
            process.send_signal(signal.SIGTERM)
            assert wait_for(lambda: (run / "exit.json").exists(), 30), "saved before a launcher's patience ends"
            assert wait_for(lambda: not ranks_of(run), 30), "no orphans"
            assert process.wait(60) != 0
        finally:
            for orphan in ranks_of(run):
                orphan.kill()
            process.kill()
    word = json.loads((run / "exit.json").read_text())
    assert word["code"] == 75 and word["reason"] in ("SIGTERM", "the launcher's end")
    assert [f.name for f in checkpoints(run)] == [f"step-{word['step']}"]
