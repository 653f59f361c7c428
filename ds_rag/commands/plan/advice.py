"""Searches for the fastest setup that fits into memory.

The search covers the ZeRO stage of each engine, activation checkpointing, the generator's pass (one pass, or chunks),
the retriever's chunk, and the number of GPUs. What the user has given is not varied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ds_rag.commands.plan.duration import Rates, step_time
from ds_rag.commands.plan.hardware import MEMORY_FRACTION
from ds_rag.commands.plan.memory import plan_memory
from ds_rag.commands.plan.setup import Setup

# Stages (of the retriever, of the generator), the simplest first. A later pair is chosen only if it is faster.
PAIRS = (("1", "1"), ("2", "2"), ("1", "2"), ("1", "3"), ("2", "3"), ("3", "3"))
SPEEDUP = 0.95  # an option is preferred to a simpler one only if it takes less than this fraction of its time
PLAIN = (("0", "0"), *PAIRS)
OFFLOADED = (("2", "3+offload"), ("3+offload", "3+offload"))
WORLDS = (1, 2, 4, *(8 * n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)))
TEXTS = (64, 16, 4, 2)  # values of --retriever_chunk to try
SIMPLER = {"3+offload": "3", "3": "2", "2": "1", "1": "0"}


@dataclass(frozen=True)
class Limits:
    """Memory in bytes of a GPU (`gpu`), and of a machine with `gpus_per_node` GPUs (`host`)."""

    gpu: float
    host: float
    gpus_per_node: int

    @property
    def usable(self) -> float:
        return self.gpu * MEMORY_FRACTION

    def fits(self, setup: Setup) -> bool:
        plan = plan_memory(setup)
        ranks = min(setup.world, self.gpus_per_node)
        return plan.peak <= self.usable and plan.host * ranks <= self.host


@dataclass(frozen=True)
class Fixed:
    """The names of what the user has chosen: stages, checkpointing, pass, retriever_chunk, candidates, world."""

    names: frozenset[str] = field(default_factory=frozenset)

    def __contains__(self, name: str) -> bool:
        return name in self.names


def stage_pairs(setup: Setup, fixed: Fixed, offload: bool) -> Sequence[tuple[str, str]]:
    """The pairs of stages to try. Stage 0 only in fp32, because in half precision it also accumulates gradients in half
    precision (deepspeed_engine.py)."""
    if "stages" in fixed:
        return [setup.stages]
    if offload:
        return OFFLOADED
    return PLAIN if setup.precision == "fp32" else PAIRS


def passes_to_try(setup: Setup, fixed: Fixed) -> list[int]:
    """Values of micro_cells to try: 0 for one pass, then smaller and smaller chunks."""
    if "pass" in fixed:
        return [setup.micro_cells]
    cells, chunks = setup.work.cells(setup.world), [0]
    size = 1 << max(0, (cells - 1).bit_length() - 1)
    while size:
        chunks.append(size)
        size //= 2
    return chunks


def options(setup: Setup, fixed: Fixed, offload: bool, frugal: bool = False) -> Iterator[Setup]:
    """All setups to try. frugal: for each pair of stages only the setup that takes the least memory."""
    cells = passes_to_try(setup, fixed)
    texts = [setup.retriever_chunk] if "retriever_chunk" in fixed else [0, *TEXTS]
    checkpointing = [setup.checkpointing] if "checkpointing" in fixed else [False, True]
    if frugal:
        cells, texts, checkpointing = cells[-1:], texts[-1:], checkpointing[-1:]
    for pair in stage_pairs(setup, fixed, offload):
        for again in checkpointing:
            for chunk in texts:
                for size in cells:
                    yield replace(setup, stages=pair, checkpointing=again, retriever_chunk=chunk, micro_cells=size)


def quickest(setup: Setup, fixed: Fixed, rates: Rates, limits: Limits, offload: bool = False) -> Setup | None:
    """The fastest setup that fits, or a simpler one that is about as fast; None if nothing fits."""
    best, least = None, float("inf")
    for option in options(setup, fixed, offload):
        seconds = step_time(option, rates).total
        if seconds < SPEEDUP * least and limits.fits(option):
            best, least = option, seconds
    return best


def fewest(setup: Setup, fixed: Fixed, limits: Limits, offload: bool = False) -> int | None:
    """The smallest number of GPUs on which any setup fits; None if there is none."""
    for world in [setup.world] if "world" in fixed else WORLDS:
        here = replace(setup, world=world)
        if any(limits.fits(option) for option in options(here, fixed, offload, frugal=True)):
            return world
    return None


@dataclass(frozen=True)
class Way:
    """One way to train: its name, and its best setup, or None if nothing fits."""

    name: str
    setup: Setup | None


def ways(setup: Setup, fixed: Fixed, rates: Rates, limits: Limits) -> list[Way]:
    """The best setup for training as requested, and, unless the user has decided this, with the optimizer offloaded to
    the host, and with LoRA for the generator."""
    asked = [("as asked" if setup.lora else "all weights", setup, False)]
    if "stages" not in fixed and setup.device != "cpu":  # whose memory is the host's
        asked.append(("offload", setup, True))
    if not setup.lora and setup.frozen != "generator":
        asked.append(("LoRA, generator", replace(setup, lora=("generator",)), False))
    found = []
    for name, wanted, offload in asked:
        world = fewest(wanted, fixed, limits, offload)
        best = None
        if world is not None:
            best = quickest(replace(wanted, world=world), fixed, rates, limits, offload)
        found.append(Way(name, best))
    return found


def least_memory(setup: Setup, fixed: Fixed, offload: bool = False) -> float:
    """Peak bytes of the setup that takes the least memory."""
    return min(plan_memory(option).peak for option in options(setup, fixed, offload, frugal=True))


LEAST_CANDIDATES = 8  # the default of --candidates


def candidates(setup: Setup) -> int:
    """The recommended number of candidates K, if the user gave none.

    The largest power of two for which the tokens that follow the passages in all cells are not more than the tokens of
    the passages, which are read in any case; at least LEAST_CANDIDATES, at most the pool.
    """
    work = setup.work
    balance = work.passages * work.prefix_tokens / work.segment_tokens
    size = LEAST_CANDIDATES
    while 2 * size <= balance:
        size *= 2
    return min(size, work.pool(setup.world))
