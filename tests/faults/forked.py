"""The real command on ranks forked from a process that has imported torch once; to be killed, stopped and filled up.

ranks = start(["train", "--output_dir", run, ...], world=2, fault="micro_batch:1:kill:5")
assert ranks.wait() == [1, -9]
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "distributed"))

from ranks import SERVER_ENVIRONMENT, be_command, server


@dataclass
class Ranks:
    """Running processes, in rank order; console: where their standard output and error go."""

    processes: list[Any]
    console: list[Path]

    def wait(self, timeout: float = 120) -> list[int]:
        """Exit codes; a negative one is a signal's. Raises TimeoutError, after which none is left."""
        deadline = time.monotonic() + timeout
        try:
            for process in self.processes:
                process.join(max(0.1, deadline - time.monotonic()))
                if process.exitcode is None:
                    raise TimeoutError(f"rank {self.processes.index(process)} did not end:\n{self.said()}")
            return [process.exitcode for process in self.processes]
        finally:
            self.end()

    def end(self) -> None:
        for process in self.processes:
            if process.exitcode is None:
                process.kill()
                process.join()

    def signal(self, number: int, rank: int | None = None) -> None:
        for process in self.processes if rank is None else [self.processes[rank]]:
            if process.exitcode is None:
                os.kill(process.pid, number)

    def said(self) -> str:
        return "\n".join(file.read_text(errors="replace") for file in self.console if file.exists())


GONE = "a pipe without a reader"


def start(
    argv: Sequence[Any], world: int = 1, fault: str = "", where: Path | None = None, heard: bool = True, **env: str
) -> Ranks:
    """`ds-rag ARGV` on `world` ranks. fault: DS_RAG_FAULT; where: a folder for what they print; heard: False gives them
    a console whose reader is gone."""
    context = server()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = where or Path(argv[list(argv).index("--output_dir") + 1]).parent
    stamp = f"{time.monotonic_ns()}"
    console = [where / f"console-{stamp}-{rank}.txt" for rank in range(world)]
    processes = []
    for rank in range(world):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_RAG_FAULT": fault, **env}
        text = {key: str(value) for key, value in variables.items()}
        process = context.Process(
            target=begin, args=([str(a) for a in argv], text, str(console[rank]) if heard else GONE)
        )
        process.start()
        processes.append(process)
    return Ranks(processes, console)


def begin(argv: list[str], variables: dict[str, str], console: str) -> None:
    """The body of one rank: as `python -m ds_rag.commands.cli` would be, but for the imports."""
    if console == GONE:
        reader, file = os.pipe()
        os.close(reader)
    else:
        file = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.environ.update(SERVER_ENVIRONMENT | variables)
    be_command(argv, {1: file, 2: file})
