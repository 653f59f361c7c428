"""The peak memory of one variant, in a process that runs nothing else (Linux: /proc)."""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path

import torch
from variants import Bench, Size

STATUS = Path("/proc/self/status")


def resident(name: str) -> float:
    """VmRSS or VmHWM in MB."""
    match = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert match, f"no {name} in {STATUS}"
    return int(match[1]) / 1024


def peak_during(bench: Bench, name: str, gradients: bool) -> float:
    """Peak MB during the step above what is resident before it. gradients: allocate them before, as a ZeRO engine
    does."""
    for p in bench.parameters():
        p.grad = torch.zeros_like(p) if gradients else None
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    bench.run(name, keep_gradients=gradients)
    return resident("VmHWM") - before


def peak_of_child(bench: Bench, name: str) -> int:
    """Prints JSON: peak_mb (with gradients) and activations_mb (without: they are allocated before)."""
    warm = Bench(Size("tiny", 2, 8, 2, 2))  # libraries, threads, thread-local buffers
    warm.run(name if name in warm.variants else next(iter(warm.variants)))
    found = {"peak_mb": peak_during(bench, name, False), "activations_mb": peak_during(bench, name, True)}
    print(json.dumps(found))
    return 0
