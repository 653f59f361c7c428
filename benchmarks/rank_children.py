"""Runs a job of `scaling_child.py` on several ranks of this host, each a child process; argument and result are
JSON."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("scaling_child.py")
SECONDS = 900


def run_on_ranks(job: str, argument: Any, world: int) -> Any:
    """Runs the job on `world` gloo ranks on the CPU; returns the result of rank 0. Raises RuntimeError with the last
    lines of a rank that failed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": 1}
    command = [sys.executable, str(CHILD), job, json.dumps(argument)]
    ranks = []
    for rank in range(world):
        own = {k: str(v) for k, v in (common | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        ranks.append(subprocess.Popen(command, env=os.environ | own, **pipes))
    try:
        texts = [process.communicate(timeout=SECONDS) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    failed = [errors for process, (_, errors) in zip(ranks, texts, strict=True) if process.returncode]
    if failed:
        raise RuntimeError(f"{job} on {world} ranks failed:\n{failed[0][-2000:]}")
    return json.loads(texts[0][0].strip().splitlines()[-1])
