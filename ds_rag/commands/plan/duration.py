"""Seconds of an optimizer step: FLOPs at a stated share of the peak, bytes at a stated bandwidth, the optimizer's
memory traffic, and what offload moves over the host's link.

FLOPs as in docs/performance.md: two for a weight and a token in the forward pass, twice that in the backward; attention
by the pairs that are not masked. Nothing is taken to overlap but the gathers of stage 3, for the shipped JSONs leave
DeepSpeed's `overlap_comm` off at the stages below.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_rag.commands.plan.activations import BYTES
from ds_rag.commands.plan.communication import Traffic, engine_traffic, plan_traffic, pool_traffic
from ds_rag.commands.plan.hardware import GPUS_PER_NODE, HOST_ADAM, HOST_LINK, LINK_SHARE, NETWORK, Gpu
from ds_rag.commands.plan.setup import NAMES, Setup
from ds_rag.commands.plan.shapes import ModelShape
from ds_rag.commands.plan.states import engine_state
from ds_rag.commands.plan.workload import Load


@dataclass(frozen=True)
class Rates:
    """What a GPU really does. bandwidth: GB/s that each sends in a ring; 0: from the GPU's link or the network."""

    gpu: Gpu
    mfu: float = 0.4
    bandwidth: float = 0.0
    gpus_per_node: int = GPUS_PER_NODE

    def flops(self, precision: str) -> float:
        peak = self.gpu.fp32_tflops if precision == "fp32" else self.gpu.tflops
        return peak * 1e12 * self.mfu

    def sends(self, world: int) -> float:
        """Bytes a second of each rank."""
        if self.bandwidth:
            return self.bandwidth * 1e9
        link = self.gpu.link * LINK_SHARE
        return 1e9 * (link if world <= self.gpus_per_node else min(link, NETWORK * LINK_SHARE))


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step, and FLOPs of one rank."""

    flops: float
    compute: float
    communication: float
    optimizer: float
    offload: float

    @property
    def total(self) -> float:
        return self.compute + self.communication + self.optimizer + self.offload


def forward_flops(shape: ModelShape, load: Load) -> float:
    linear = 2.0 * shape.matmul_parameters * load.tokens
    attention = 4.0 * shape.queries * shape.layers * load.pairs
    return linear + attention + 2.0 * shape.hidden * shape.vocabulary * load.targets


def passes(setup: Setup, name: str) -> float:
    """Forward passes' worth of work: 1 forward and 2 backward; again a forward for chunks, and for checkpointing. With
    LoRA the backward has no gradients of the large weights: 1. A model that does not learn is only scored."""
    if name == setup.frozen:
        return 1.0
    chunked = setup.micro_cells > 0 if name == "generator" else setup.retriever_chunks > 1
    return 1.0 + (1.0 if name in setup.lora else 2.0) + chunked + setup.checkpointing


def step_flops(setup: Setup) -> float:
    """Of one rank in an optimizer step."""
    loads = {"retriever": setup.work.retriever(), "generator": setup.work.generator(setup.world)}
    one = sum(passes(setup, name) * forward_flops(setup.shape(name), loads[name]) for name in NAMES)
    return setup.work.accumulation * one


def step_time(setup: Setup, rates: Rates) -> StepTime:
    flops = step_flops(setup)
    compute = flops / rates.flops(setup.precision)
    hidden, plain = pool_traffic(setup), Traffic()
    for name in NAMES:
        traffic = engine_traffic(setup, name)
        if setup.stage(name)[0] == "3":  # fetched ahead of the layers that need them
            plain += Traffic(gradients=traffic.gradients)
            hidden += Traffic(weights=traffic.weights)
        else:
            plain += traffic
    sends = rates.sends(setup.world)
    waiting = plain.total / sends + max(0.0, hidden.weights / sends - compute) + hidden.pool / sends
    assert abs(plain.total + hidden.total - plan_traffic(setup).total) <= 1e-6 * (1 + plain.total + hidden.total)
    updated = moved = 0.0
    for name in NAMES:
        state = engine_state(setup, name)
        share = setup.parameters(name)[0] / (setup.world if setup.stage(name) != "0" else 1)
        if state.host:
            weights = BYTES[setup.precision] * sum(setup.parameters(name)) / setup.world
            fetched = weights * 2 * setup.backwards(name)  # gathers read their shares from the host
            moved += (4 * share * setup.backwards(name) + fetched) / (HOST_LINK * 1e9) + share / (HOST_ADAM * 1e9)
        else:
            updated += 30 * share / (rates.gpu.memory_bandwidth * 1e9)  # reads p, g, m, v; writes p, m, v and a half p
    return StepTime(flops, compute, waiting, updated, moved)
