"""How much memory a forward pass of the generator keeps for its backward, and how much memory is available.

The cost is measured on the model itself, in its precision and with its attention: a few cells are run through it, and
the bytes that autograd saves are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from ds_rag.data.batch import list_cells
from ds_rag.models.generator import Generator
from ds_rag.models.token_logprobs import CHUNK_BYTES, KEEP_BYTES

# Fraction of the free memory that is used. Less on a CPU, where the system kills a process that takes too much.
MEMORY_FRACTION = {"cpu": 0.5, "cuda": 0.8}
MARGIN = 1.1  # factor for gradients of activations, attention's workspace and the allocator's fragmentation


@dataclass(frozen=True)
class CellCost:
    """Bytes that scoring cells with a graph needs in addition to the weights."""

    saved_per_token: float  # what autograd saves for the backward
    working_per_token: float  # what one layer needs while it is recomputed (activation checkpointing) or differentiated
    vocabulary: int
    logit_bytes: int  # size of one logit in the model's dtype
    gradients: int  # of the parameters, for half precision with their fp32 sums; allocated by the first backward
    shared: bool  # are prefixes shared? If not, all logits of a pass exist at once, in three copies

    def of(self, tokens: int, targets: int, keep_bytes: float = KEEP_BYTES) -> float:
        """Peak bytes of a forward and backward pass that reads `tokens` tokens and predicts `targets` of them.

        keep_bytes: as in `head.target_logprobs`.
        """
        logits = targets * self.vocabulary
        if not self.shared:
            return MARGIN * (tokens * (self.saved_per_token + self.working_per_token) + logits * (self.logit_bytes + 8))
        kept = logits * self.logit_bytes if logits * 4 <= keep_bytes else 0
        chunk = min(logits * 4, CHUNK_BYTES)
        return MARGIN * (tokens * (self.saved_per_token + self.working_per_token) + kept + 3 * chunk)

    def tokens_within(self, budget: float, targets_per_token: float) -> int:
        """The largest number of tokens whose pass needs at most `budget` bytes; at least 1."""
        low, high = 1, 1 << 24
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.of(middle, int(middle * targets_per_token) + 1) <= budget
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


@contextmanager
def count_saved(parameters: list[torch.Tensor]) -> Iterator[dict[int, int]]:
    """Bytes of each distinct storage that autograd saves inside the block, by address; parameters do not count."""
    fixed = addresses(parameters)
    sharded = any(hasattr(p, "ds_id") for p in parameters)  # ZeRO-3 gathers and frees them: their addresses change
    saved: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # keeps them alive: the address of a freed storage could be used again

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in (addresses(parameters) if sharded else fixed):
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield saved


def addresses(tensors: list[torch.Tensor]) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tensors}


def measure_cost(generator: Generator) -> CellCost:
    """The memory cost, from forward passes over cells of two lengths. Random states are not changed."""
    lm = generator.lm
    long = min(192, generator.max_length)
    short = max(4, long // 3)

    def slope(training: bool) -> float:
        generator.train(training)
        (less, few), (more, many) = (saved_bytes(generator, length) for length in (short, long))
        return (many - few) / (more - less)

    training = generator.training
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        full = slope(training=False)  # without activation checkpointing, which works in training mode only
        saved = slope(training=True)
    generator.train(training)
    layers = max(1, int(getattr(lm.config.get_text_config(), "num_hidden_layers", 1)))
    trainable = [p for p in lm.parameters() if p.requires_grad]
    return CellCost(
        saved_per_token=saved,
        working_per_token=full / layers,
        vocabulary=generator.vocabulary,
        logit_bytes=lm.dtype.itemsize,
        gradients=sum(held_numel(p) * (p.element_size() + 4 * (p.element_size() < 4)) for p in trainable),
        shared=generator.shares_prefixes,
    )


def held_numel(p: torch.Tensor) -> int:
    """Number of elements whose gradient this rank keeps: under ZeRO-3 those of its shard, else all."""
    return int(getattr(p, "ds_tensor", p).numel())


def saved_bytes(generator: Generator, length: int) -> tuple[int, int]:
    """(tokens, bytes saved) of a forward over three cells of `length` tokens each, three quarters of them one common
    prefix."""
    ids = np.arange(length, dtype=np.int32) % generator.vocabulary
    split = max(1, length * 3 // 4)
    listed = list_cells([ids[:split]] * 3, [ids[split:]] * 3, [1] * 3)
    cells = generator.lay_out(listed, 0).to(generator.lm.device)
    with count_saved(list(generator.parameters())) as saved:
        out = generator(cells)
        total = sum(saved.values())
    del out
    return cells.token_count, total


def budget_bytes(gigabytes: float | None, device: torch.device, processes: int = 1) -> float:
    """Bytes that one process may use: `gigabytes` (the flag), else a fraction of the free memory, which on a CPU is
    divided among the host's processes."""
    if gigabytes is not None:
        return gigabytes * 1e9
    if device.type == "cuda":
        # Memory that torch's allocator has reserved, but that holds no tensor:
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return MEMORY_FRACTION["cuda"] * (torch.cuda.mem_get_info(device)[0] + cached)
    return MEMORY_FRACTION["cpu"] * min(psutil.virtual_memory().available, free_in_cgroup()) / processes


def free_in_cgroup() -> float:
    """Bytes left below the memory limit of the container; infinity without one."""
    root = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((root / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current"))
        pages = dict(line.split() for line in (root / "memory.stat").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):  # no such file, or "max"
        return float("inf")
    return max(0, limit - used + int(pages.get("inactive_file", 0)))  # the page cache is freed when memory is short
