"""What gpu_parts.py measures with: the device, its peak memory, seconds of work that is really finished."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from gpu_runs import known_gpu
from measure import quartiles
from memory_child import resident

from ds_rag.commands.plan.duration import Rates
from ds_rag.commands.plan.hardware import Gpu

PACKAGES = ("torch", "transformers", "deepspeed", "peft", "accelerate", "sentence-transformers", "faiss-cpu", "numpy")
WARM_UP, LEAST, MOST, ENOUGH_S = 2, 3, 20, 6.0  # steps before, and steps that are timed: until so many seconds


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def describe() -> dict[str, Any]:
    """Name, driver, and the versions that the figures belong to."""
    found: dict[str, Any] = {"name": device_name(), "python": platform.python_version(), "cuda": torch.version.cuda}
    found["memory_gb"] = memory_gb()
    found["threads"] = torch.get_num_threads()
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        found["driver"] = done.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        found["driver"] = None
    return found


def memory_gb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / 1e9
    return psutil.virtual_memory().total / 1e9


def product_tflops(dtype: torch.dtype, size: int) -> float:
    """The rate of a square matrix product, the best of five."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(size, size, device=device).to(dtype)
    best = min(timed_once(lambda: a @ a) for _ in range(6))
    return 2.0 * size**3 / best / 1e12


def timed_once(work: Callable[[], object]) -> float:
    finish()
    begin = time.perf_counter()
    work()
    finish()
    return time.perf_counter() - begin


def finish() -> None:
    """Waits for what a GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@cache
def rates_here(tiny: bool) -> Rates:
    """What a plan takes of this device: the data sheet's where it has one, else the measured rate of products."""
    gpu = known_gpu(device_name())
    if gpu is None:
        size = 256 if tiny else 4096
        half, single = (product_tflops(dtype, size) for dtype in (torch.bfloat16, torch.float32))
        gpu = Gpu(device_name(), memory_gb(), half, single, 20.0, 10.0)
    return Rates(gpu)


@dataclass(frozen=True)
class Timed:
    """seconds: median and quartiles of a step. gb: the peak of the device's memory, the models included."""

    seconds: float
    quartiles: tuple[float, float]
    repeats: int
    gb: float
    last: Any  # what the last step returned


class Meter:
    """Made before the models are: on a CPU memory is counted from then on."""

    def __init__(self, tiny: bool):
        self.tiny, self.before = tiny, psutil.Process().memory_info().rss
        self.watch()

    def watch(self) -> None:
        """The peaks start anew."""
        with suppress(OSError):  # not every sandbox has it; the host's peak is then that of the whole process
            Path("/proc/self/clear_refs").write_text("5")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    @property
    def host_gb(self) -> float:
        """The peak of the process, libraries that were loaded meanwhile included."""
        try:
            peak = resident("VmHWM") * 2**20
        except (OSError, AssertionError):
            peak = 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return (peak - self.before) / 1e9

    @property
    def gb(self) -> float:
        return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else self.host_gb

    def time(self, step: Callable[[int], Any]) -> Timed:
        """`step(number)` after a warm-up."""
        self.watch()  # what an earlier measurement has cached is given back
        for number in range(WARM_UP):
            step(number)
        finish()
        self.watch()
        seconds: list[float] = []
        last: Any = None
        least, most = (2, 2) if self.tiny else (LEAST, MOST)
        while len(seconds) < least or (len(seconds) < most and sum(seconds) < ENOUGH_S):
            begin = time.perf_counter()
            last = step(WARM_UP + len(seconds))
            finish()
            seconds.append(time.perf_counter() - begin)
        low, middle, high = quartiles(seconds)
        return Timed(middle, (low, high), len(seconds), self.gb, last)
