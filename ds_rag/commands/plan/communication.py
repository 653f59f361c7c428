"""Bytes that one rank sends in an optimizer step, with the ring algorithms that NCCL and gloo use for large tensors.

In a ring over W ranks each sends (W - 1) / W of the full tensor for a gather or a reduce-scatter, twice that for an
all-reduce
(Thakur et al. 2005, "Optimization of collective communication operations in MPICH"). What DeepSpeed 0.19.8
sends at each stage, with b bytes per element of the model and P trained elements (files of deepspeed/runtime):

    0  all-reduce b P a step                                                   engine.py
    1  all-reduce b P a step, gather b P a step                                zero/stage_1_and_2.py, bf16_optimizer.py
    2  all-reduce b P a *backward* (its buckets span ranks, so nothing is
       reduce-scattered), gather b P a step                                    zero/stage_1_and_2.py
    3  gather of all weights a forward and a backward, reduce-scatter b P a
       backward                                                                zero/stage3.py

benchmarks/scaling.py measures the same during a step.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_rag.commands.plan.activations import BYTES
from ds_rag.commands.plan.setup import NAMES, Setup
from ds_rag.commands.plan.states import MAX_LIVE

FP32, INT64 = 4, 8


@dataclass(frozen=True)
class Traffic:
    """Bytes a rank sends in an optimizer step."""

    gradients: float = 0.0
    weights: float = 0.0  # gathered after the step, or at stage 3 before each layer
    pool: float = 0.0  # embeddings, candidates and log-probabilities with --pool world

    @property
    def total(self) -> float:
        return self.gradients + self.weights + self.pool

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.gradients + other.gradients, self.weights + other.weights, self.pool + other.pool)


def ring(world: int) -> float:
    """The fraction of a full tensor that each rank sends in a gather or a reduce-scatter."""
    return (world - 1) / world


def plan_traffic(setup: Setup) -> Traffic:
    """The traffic of both engines and of the pool."""
    total = pool_traffic(setup)
    for name in NAMES:
        total += engine_traffic(setup, name)
    return total


def engine_traffic(setup: Setup, name: str) -> Traffic:
    trained, still = setup.parameters(name)
    fraction, b, backwards = ring(setup.world), BYTES[setup.precision], setup.backwards(name)
    stage = setup.stage(name)[0]
    if stage == "3":
        weights = fraction * b * (trained + still) * gathers(setup, name)
        return Traffic(fraction * b * trained * backwards, weights)
    if not trained:
        return Traffic()
    if stage in ("0", "1"):
        backwards = 1  # gradients are reduced only after the last one
    return Traffic(2 * fraction * b * trained * backwards, fraction * b * trained if stage != "0" else 0.0)


def gathers(setup: Setup, name: str) -> float:
    """How often stage 3 gathers a model's weights in an optimizer step.

    Up to MAX_LIVE elements stay gathered from forward to backward; a larger model is gathered for both. With two passes
    each chunk has one more forward, the one without a graph. It breaks the trace by which DeepSpeed decides what stays
    gathered, so the weights are gathered for all three.
    """
    backwards, elements = setup.backwards(name), sum(setup.parameters(name))
    if name == setup.frozen:
        return 0 if setup.stores_scores else backwards
    two_pass = setup.micro_cells > 0 if name == "generator" else setup.retriever_chunks > 1
    if two_pass:
        return 3 * backwards
    return backwards * (1 if elements <= MAX_LIVE else 2)


def pool_traffic(setup: Setup) -> Traffic:
    """With `--pool world`: the embeddings of queries and passages are gathered (padded to the rank that has most), the
    candidates are sent from rank 0, and the log-probabilities of all cells are combined by an all-reduce."""
    work, world = setup.work, setup.world
    if not work.world_pool or world == 1:
        return Traffic()
    queries, passages = world * work.batch, work.pool(world)
    embeddings = (queries + passages) * setup.retriever.hidden * FP32
    chosen = queries * work.per_query(world) * INT64
    logps = queries * work.per_query(world) * work.answer * FP32
    sent = ring(world) * (embeddings + chosen + 2 * logps)
    return Traffic(pool=work.accumulation * sent)
