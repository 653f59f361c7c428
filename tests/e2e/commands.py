"""The real commands in processes of their own, small: few steps, few questions, one thread, no GPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_rag import commit

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, "launch/train.py"]
DS_RAG = [sys.executable, "-m", "ds_rag.cli"]
SMALL = ["--max_eval_samples", "8"]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launcher(name: str, *flags: str) -> list[str]:
    """`deepspeed` or `torchrun` of this environment, on a port that no other test uses."""
    return [str(Path(sys.executable).with_name(name)), "--master_port", free_port(), *flags, "launch/train.py"]


def environment(**more: str) -> dict[str, str]:
    """What the commands run in: nothing of a launcher that started the tests themselves."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": path, "PYTHONPATH": str(ROOT)}
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    clean = {k: v for k, v in os.environ.items() if k not in ours and not k.startswith("SLURM_")}
    return clean | settings | more


def execute(
    argv: Sequence[str | Path],
    code: int = 0,
    cwd: Path = ROOT,
    timeout: float = 240,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; its exit code must be `code`."""
    words, env = [str(word) for word in argv], env or environment()
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)
    shown = f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    assert done.returncode == code, f"exit code {done.returncode}: {shown}"
    return done


def train(folder: Path, *flags: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Plain `python launch/train.py` into `folder`."""
    return execute([*TRAIN, "--output_dir", folder, *SMALL, *flags], code)


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def lines(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of one kind."""
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["kind"] == kind]


def losses(run: Path) -> dict[int, float]:
    """The loss of each step; a step that was written twice, as after resuming, must be one value."""
    found: dict[int, float] = {}
    for line in lines(run):
        assert found.setdefault(line["step"], line["loss"]) == line["loss"], line
    return found


def reseal(run: Path) -> None:
    """The run's manifest names its files as they are now: those of one who has changed them on purpose."""
    manifest = commit.read_manifest(run)
    assert manifest is not None
    named = [name for name in (run / "retriever", run / "generator", run / "config.json", run / "results.json")]
    every = [file for place in named for file in (place.rglob("*") if place.is_dir() else [place]) if file.is_file()]
    manifest["files"] = {file.relative_to(run).as_posix(): commit.measure(file) for file in every}
    text = json.dumps(manifest | {"seal": commit.seal_of(manifest)})
    (run / "manifest.json").write_text(text, encoding="utf-8")


def files(folder: Path) -> set[str]:
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
