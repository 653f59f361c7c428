"""Seconds of an optimizer step: FLOPs at a given fraction of the peak rate, bytes sent at a given bandwidth, the memory
traffic of the optimizer, and the bytes that offload moves over the host's link.

FLOPs as in docs/performance.md: two per weight and token in the forward pass, twice as many in the backward; for
attention by the (query, key) pairs that are not masked. Only the gathers of stage 3 are assumed to overlap with
computing, because the shipped JSONs leave DeepSpeed's `overlap_comm` off at the lower stages.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_rag.commands.plan.activations import BYTES
from ds_rag.commands.plan.communication import Traffic, engine_traffic, plan_traffic, pool_traffic
from ds_rag.commands.plan.hardware import GPUS_PER_NODE, HOST_ADAM, HOST_LINK, LINK_FRACTION, NETWORK, Gpu
from ds_rag.commands.plan.setup import NAMES, Setup
from ds_rag.commands.plan.shapes import ModelShape
from ds_rag.commands.plan.states import engine_state
from ds_rag.commands.plan.workload import Load


@dataclass(frozen=True)
class Rates:
    """The rates that a GPU really reaches. mfu: fraction of the peak FLOP rate. bandwidth: GB/s that each GPU sends in
    a ring; 0: computed from the GPU's link or the network."""

    gpu: Gpu
    mfu: float = 0.4
    bandwidth: float = 0.0
    gpus_per_node: int = GPUS_PER_NODE

    def flops(self, precision: str) -> float:
        peak = self.gpu.fp32_tflops if precision == "fp32" else self.gpu.tflops
        return peak * 1e12 * self.mfu

    def sends(self, world: int) -> float:
        """Bytes per second that each rank sends."""
        if self.bandwidth:
            return self.bandwidth * 1e9
        link = self.gpu.link * LINK_FRACTION
        return 1e9 * (link if world <= self.gpus_per_node else min(link, NETWORK * LINK_FRACTION))


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
    """The work of a micro-batch in units of a forward pass: 1 for the forward and 2 for the backward, 1 more for
    chunks, 1 more for checkpointing. With LoRA the backward counts 1, because it computes no gradients of the large
    weights. A frozen model has only a forward; where its scores are stored, none."""
    if name == setup.frozen:
        return 0.0 if setup.stores_scores else 1.0
    chunked = setup.micro_cells > 0 if name == "generator" else setup.retriever_chunks > 1
    return 1.0 + (1.0 if name in setup.lora else 2.0) + chunked + setup.checkpointing


def step_flops(setup: Setup) -> float:
    """FLOPs of one rank in an optimizer step."""
    loads = {"retriever": setup.work.retriever(), "generator": setup.work.generator(setup.world)}
    one = sum(passes(setup, name) * forward_flops(setup.shape(name), loads[name]) for name in NAMES)
    return setup.work.accumulation * one


def step_time(setup: Setup, rates: Rates) -> StepTime:
    flops = step_flops(setup)
    compute = flops / rates.flops(setup.precision)
    hidden, plain = pool_traffic(setup), Traffic()
    for name in NAMES:
        traffic = engine_traffic(setup, name)
        if setup.stage(name)[0] == "3":  # gathered before the layers need them, while others compute
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
        shard = setup.parameters(name)[0] / (setup.world if setup.stage(name) != "0" else 1)
        if state.host:
            weights = BYTES[setup.precision] * sum(setup.parameters(name)) / setup.world
            fetched = weights * 2 * setup.backwards(name)  # gathers read the shards from the host
            moved += (4 * shard * setup.backwards(name) + fetched) / (HOST_LINK * 1e9) + shard / (HOST_ADAM * 1e9)
        else:
            updated += 30 * shard / (rates.gpu.memory_bandwidth * 1e9)  # reads p, g, m, v; writes p, m, v and p in half
    return StepTime(flops, compute, waiting, updated, moved)
