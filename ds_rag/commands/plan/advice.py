"""The quickest way to train that fits, and why: each choice is held against the plainer one it was taken over.

What the user fixed stays fixed. Searched are ZeRO stages by engine, activation checkpointing, the generator's pass
(one, or chunks), the retriever's chunk, and the number of GPUs where none is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ds_rag.commands.plan.duration import Rates, step_time
from ds_rag.commands.plan.hardware import SHARE_OF_MEMORY
from ds_rag.commands.plan.memory import plan_memory
from ds_rag.commands.plan.setup import Setup

# (retriever's, generator's): plainest first; what comes later is taken only where it fits and is quicker.
PAIRS = (("1", "1"), ("2", "2"), ("1", "2"), ("1", "3"), ("2", "3"), ("3", "3"))
PLAINER = 0.95  # of a plainer option's time that another must stay below to be preferred
PLAIN = (("0", "0"), *PAIRS)
OFFLOADED = (("2", "3+offload"), ("3+offload", "3+offload"))
WORLDS = (1, 2, 4, *(8 * n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)))
TEXTS = (64, 16, 4, 2)  # of --retriever_chunk
SIMPLER = {"3+offload": "3", "3": "2", "2": "1", "1": "0"}


@dataclass(frozen=True)
class Limits:
    """Bytes: of a GPU, and of the host of `gpus_per_node` of them."""

    gpu: float
    host: float
    gpus_per_node: int

    @property
    def usable(self) -> float:
        return self.gpu * SHARE_OF_MEMORY

    def fits(self, setup: Setup) -> bool:
        plan = plan_memory(setup)
        ranks = min(setup.world, self.gpus_per_node)
        return plan.peak <= self.usable and plan.host * ranks <= self.host


@dataclass(frozen=True)
class Fixed:
    """Names of what the user chose: stages, checkpointing, pass, retriever_chunk, world."""

    names: frozenset[str] = field(default_factory=frozenset)

    def __contains__(self, name: str) -> bool:
        return name in self.names


def stage_pairs(setup: Setup, fixed: Fixed, offload: bool) -> Sequence[tuple[str, str]]:
    """Those to try. Stage 0 only in fp32: in half types it accumulates gradients in those (deepspeed_engine.py)."""
    if "stages" in fixed:
        return [setup.stages]
    if offload:
        return OFFLOADED
    return PLAIN if setup.precision == "fp32" else PAIRS


def passes_to_try(setup: Setup, fixed: Fixed) -> list[int]:
    """Values of micro_cells: 0, one pass; else ever smaller chunks."""
    if "pass" in fixed:
        return [setup.micro_cells]
    cells, chunks = setup.work.cells(setup.world), [0]
    size = 1 << max(0, (cells - 1).bit_length() - 1)
    while size:
        chunks.append(size)
        size //= 2
    return chunks


def options(setup: Setup, fixed: Fixed, offload: bool, frugal: bool = False) -> Iterator[Setup]:
    """Every way to train; frugal: of each stage only what takes the least memory."""
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
    """The option that fits and takes the least time; a plainer one that is about as quick before it."""
    best, least = None, float("inf")
    for option in options(setup, fixed, offload):
        seconds = step_time(option, rates).total
        if seconds < PLAINER * least and limits.fits(option):
            best, least = option, seconds
    return best


def fewest(setup: Setup, fixed: Fixed, limits: Limits, offload: bool = False) -> int | None:
    """The smallest number of GPUs on which any option fits."""
    for world in [setup.world] if "world" in fixed else WORLDS:
        here = replace(setup, world=world)
        if any(limits.fits(option) for option in options(here, fixed, offload, frugal=True)):
            return world
    return None


@dataclass(frozen=True)
class Way:
    """One answer: a setup, or None where nothing fits."""

    name: str
    setup: Setup | None


def ways(setup: Setup, fixed: Fixed, rates: Rates, limits: Limits) -> list[Way]:
    """Training as asked for; and, where the user left it open, with the optimizer on the host and with LoRA."""
    asked = [("as asked" if setup.lora else "all weights", setup, False)]
    if "stages" not in fixed:
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
    """Bytes of the option that takes the least."""
    return min(plan_memory(option).peak for option in options(setup, fixed, offload, frugal=True))


LEAST_CANDIDATES = 8  # ds_rag's own default


def candidates(setup: Setup) -> int:
    """K where the user gave none: up to where the cells' own tokens equal those of the passages, which are read anyway;
    a power of two, no fewer than LEAST_CANDIDATES, no more than the pool."""
    work = setup.work
    balance = work.passages * work.prefix_tokens / work.segment_tokens
    size = LEAST_CANDIDATES
    while 2 * size <= balance:
        size *= 2
    return min(size, work.pool(setup.world))
