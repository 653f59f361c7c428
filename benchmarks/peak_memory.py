"""The peak memory of one rank's training, in a process that has run nothing else (Linux: /proc)."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from joint_parts import make_steps
from joint_runs import Run
from memory_child import resident

from ds_rag.runtime import collectives

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # malloc.h
STEPS = 2  # from the second one on the optimizer has its state
TINY: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
WARM = Run(
    {"model_type": "bert", "intermediate_size": 64, **TINY},
    {"model_type": "llama", "intermediate_size": 64, **TINY},
    2,
    query=4,
    passage=8,
    answer=4,
)


def peak_of_training(run: Run) -> dict[str, float]:
    """`peak_mb` above what is resident before the models are made, and the number of parameters of each model.

    malloc is told to return large blocks at once, so that the figure is what the step needs, not what malloc caches.
    """
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 18)
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 18)
    step(WARM)  # libraries, threads, thread-local buffers
    libc.malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    parameters = step(run)
    return {"peak_mb": resident("VmHWM") - before} | parameters


def step(run: Run) -> dict[str, float]:
    steps = make_steps(run)
    found = {n: float(sum(p.numel() for p in m.parameters())) for n, m in steps.engines.modules.items()}
    for n in range(STEPS):
        steps.engines.train()
        steps.step(n)
    collectives.barrier()
    return found
