"""The processes of a run for soak.py: ranks that this process forks, or a launcher as a user would start it.

Both classes kill one of their processes, say which are left, and end the rest.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Protocol

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "faults"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "e2e"))

from commands import ROOT, environment, launcher
from forked import start

WORLD = 2
MARK = "DS_RAG_SOAK"  # an environment variable of all processes that a launcher starts
LAUNCHERS = {"torchrun": ("--nproc_per_node", str(WORLD)), "deepspeed": ("--num_gpus", str(WORLD))}


class Started(Protocol):
    def kill(self, rng: random.Random) -> str | None:
        """Sends SIGKILL to one of its parts, drawn at random; returns which, or None if the run has ended."""

    def running(self) -> bool:
        """Whether it is running; of a launched run, whether the launcher is."""

    def left(self) -> list[psutil.Process]:
        """The processes that are alive."""

    def good(self) -> bool:
        """Whether it has ended with exit code 0."""

    def end(self) -> None:
        """Ends all processes that are left."""

    def said(self) -> str: ...


class Forked:
    """Runs the real command on two forked ranks."""

    def __init__(self, argv: list[Any], scratch: Path):
        self.ranks = start(argv, WORLD, where=scratch, TMPDIR=scratch)
        self.known = {p.pid: psutil.Process(p.pid) for p in self.ranks.processes if psutil.pid_exists(p.pid)}

    def kill(self, rng: random.Random) -> str | None:
        self.note_children()
        victim = rng.choice(["rank 0", "rank 1", "all ranks"])
        alive = [p for p in self.ranks.processes if p.exitcode is None]
        hit = alive if victim == "all ranks" else [p for p in alive if self.ranks.processes.index(p) == int(victim[-1])]
        for process in hit:
            os.kill(process.pid, signal.SIGKILL)
        return victim if hit else None

    def note_children(self) -> None:
        """Records child processes: once their parent is dead they could not be found."""
        for process in list(self.known.values()):
            if process.is_running():
                self.known |= {child.pid: child for child in process.children(recursive=True)}

    def running(self) -> bool:
        return any(p.exitcode is None for p in self.ranks.processes)

    def left(self) -> list[psutil.Process]:
        return [p for p in self.known.values() if alive(p)]

    def good(self) -> bool:
        for process in self.ranks.processes:
            process.join(10)  # the exit code comes a little after the end
        return [p.exitcode for p in self.ranks.processes] == [0] * WORLD

    def end(self) -> None:
        self.ranks.end()
        put_down(self.left())

    def said(self) -> str:
        return self.ranks.said()


class Launched:
    """Runs `torchrun` or `deepspeed` in its own session."""

    def __init__(self, name: str, argv: list[Any], scratch: Path):
        self.name, self.mark = name, uuid.uuid4().hex
        self.console = scratch / f"console-{self.mark}.txt"
        command = [*launcher(name, *LAUNCHERS[name]), *map(str, argv)]
        more = {MARK: self.mark, "TMPDIR": str(scratch), "DS_ACCELERATOR": "cpu"}
        with self.console.open("w") as stream:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment(**more), stdout=stream, stderr=stream, start_new_session=True
            )

    def kill(self, rng: random.Random) -> str | None:
        found, victim = self.ranks(), rng.choice(["rank 0", "rank 1", "launcher", "launcher"])
        if not self.running():
            return None
        hit = found.get(victim) or psutil.Process(self.process.pid)  # the ranks may not exist yet
        if victim == "launcher" or victim not in found:
            lower = [p for p in self.left() if "deepspeed.launcher.launch" in " ".join(words(p))]
            victim = "launcher"
            if lower and rng.random() < 0.5:
                hit, victim = lower[0], "lower launcher"
        hit.kill()
        return f"{victim} ({self.name})"

    def ranks(self) -> dict[str, psutil.Process]:
        """'rank N' -> its process: the oldest one, because the workers of a rank inherit its environment."""
        found: dict[str, psutil.Process] = {}
        for process in sorted(self.left(), key=lambda p: p.create_time()):
            rank = environ(process).get("RANK")
            if rank is not None and "launch/train.py" in words(process):
                found.setdefault(f"rank {rank}", process)
        return found

    def running(self) -> bool:
        return self.process.poll() is None

    def left(self) -> list[psutil.Process]:
        self.process.poll()  # otherwise a dead launcher stays in the process table
        return [p for p in psutil.process_iter() if environ(p).get(MARK) == self.mark and alive(p)]

    def good(self) -> bool:
        return self.process.poll() == 0

    def end(self) -> None:
        put_down(self.left())
        self.process.wait()

    def said(self) -> str:
        return self.console.read_text(errors="replace")


def environ(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.Error, OSError):
        return []


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def put_down(processes: list[psutil.Process]) -> None:
    for process in processes:
        if alive(process):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def wait_for_end(started: Started, seconds: float) -> list[psutil.Process]:
    """Waits until all processes have ended, at most for so long; returns those that are still alive."""
    deadline = time.monotonic() + seconds
    while (left := started.left()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
