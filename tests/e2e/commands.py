"""The real commands in processes of their own, small: few steps, few questions, one thread, no GPU.

`execute` starts a process as a user does. `call` and `train` fork it from one that has imported torch once: for what
a command does, where how it starts is not the question.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_rag.runtime import atomic_folders

sys.path.append(str(Path(__file__).resolve().parents[1] / "distributed"))

from ranks import SERVER_ENVIRONMENT, be_command, server

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, "launch/train.py"]
DS_RAG = [sys.executable, "-m", "ds_rag.commands.cli"]
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
    return checked(done, code)


def checked(done: subprocess.CompletedProcess[str], code: int) -> subprocess.CompletedProcess[str]:
    shown = f"{' '.join(done.args)}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    assert done.returncode == code, f"exit code {done.returncode}: {shown}"
    return done


def call(
    argv: Sequence[str | Path], code: int = 0, cwd: Path = ROOT, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """`ds-rag ARGV`, forked, to its end; its exit code must be `code`."""
    words = [str(word) for word in argv]
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("out", "err")]
        process = server().Process(target=begin, args=(words, environment(), cwd, [str(file) for file in said]))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
        out, err = (file.read_text(errors="replace") if file.exists() else "" for file in said)
    assert process.exitcode is not None and process.exitcode >= 0, f"{words}: {process.exitcode}\n{out}\n{err}"
    return checked(subprocess.CompletedProcess(["ds-rag", *words], process.exitcode, out, err), code)


def begin(argv: list[str], variables: dict[str, str], cwd: Path, said: list[str]) -> None:
    """The body of the forked process."""
    os.environ.clear()
    os.environ.update(variables | SERVER_ENVIRONMENT)
    os.chdir(cwd)
    gc.freeze()
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    be_command(argv, {stream: os.open(file, flags, 0o644) for stream, file in enumerate(said, start=1)})


def train(folder: Path, *flags: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`ds-rag train` into `folder`."""
    return call(["train", "--output_dir", folder, *SMALL, *flags], code)


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
    manifest = atomic_folders.read_manifest(run)
    assert manifest is not None
    named = [name for name in (run / "retriever", run / "generator", run / "config.json", run / "results.json")]
    every = [file for place in named for file in (place.rglob("*") if place.is_dir() else [place]) if file.is_file()]
    manifest["files"] = {file.relative_to(run).as_posix(): atomic_folders.measure(file) for file in every}
    text = json.dumps(manifest | {"seal": atomic_folders.seal_of(manifest)})
    (run / "manifest.json").write_text(text, encoding="utf-8")


def files(folder: Path) -> set[str]:
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
