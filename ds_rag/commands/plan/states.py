"""The memory of an engine on one rank without activations, as DeepSpeed 0.19.8 allocates it.

P trained elements, W ranks, b bytes per element of the model. Bytes per rank (files of deepspeed/runtime):

    stage, precision      weights  masters  Adam's  gradients          where
    0  fp32               4P       -        8P      4P                 the plain optimizer
    0  bf16, fp16         2P       4P       8P      2P, at step 4P     fp16/unfused_optimizer.py
    1  bf16               2P       4P/W     8P/W    4P + 2P, always    bf16_optimizer.py
    1  fp32, fp16         bP       4P/W     8P/W    4P, at step 4P/W   zero/stage_1_and_2.py
    2  fp32               4P       4P/W     8P/W    4P/W, at step 8P/W zero/stage_1_and_2.py
    2  bf16, fp16         2P       4P/W     8P/W    4P/W               zero/stage_1_and_2.py
    3  fp32               4P/W     -        8P/W    4P/W               zero/stage3.py
    3  bf16, fp16         2P/W     4P/W     8P/W    4P/W               zero/stage3.py

Stages 1 and 2 copy the rank's shard as master weights even in fp32. At stages 1 to 3 gradients accumulate in fp32
(`grad_accum_dtype`, deepspeed_config/resolve.py). Frozen weights are sharded only at stage 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ds_rag.commands.plan.activations import BYTES
from ds_rag.commands.plan.setup import Setup

MIN_BUCKET = 1 << 20  # elements, as in deepspeed_config/resolve.py
ALL_REDUCE_BUCKET = 500_000_000  # elements of stage 0's buckets (deepspeed_engine.py)
MAX_LIVE = 1_000_000_000  # stage3_max_live_parameters and stage3_max_reuse_distance, elements
SUB_GROUP = 1_000_000_000  # elements that stage 3 updates at once


@dataclass(frozen=True)
class EngineState:
    """Bytes of one engine on one rank: of the GPU, except for `host`."""

    weights: float = 0.0
    masters: float = 0.0
    moments: float = 0.0  # both of Adam's
    gradients: float = 0.0  # from the backward to the step
    always: bool = False  # gradient buffers exist in the forward too
    early: float = 0.0  # the part of `gradients` that is allocated with the first reduced bucket
    second: float = 0.0  # a second copy while several backwards accumulate
    buckets: float = 0.0  # of the reduction, in the backward
    largest: float = 0.0  # the largest gradient as autograd makes it: of the embedding, or the head
    reduce_work: float = 0.0  # at the end of the backward
    norm_work: float = 0.0  # gradient norms are computed in float64, one tensor at a time
    step_work: float = 0.0
    live: float = 0.0  # weights that stage 3 has gathered
    host: float = 0.0

    @property
    def fixed(self) -> float:
        return self.weights + self.masters + self.moments


def engine_state(setup: Setup, name: str) -> EngineState:
    """The memory of one of the two engines. A frozen model has only weights."""
    trained, frozen = setup.parameters(name)
    b = BYTES[setup.precision]
    if not trained:
        return EngineState(weights=b * frozen)
    shape, several = setup.shape(name), setup.backwards(name) > 1
    largest = min(trained, shape.largest_parameter)
    bucket = max(shape.hidden**2, MIN_BUCKET)
    wide = 0.0 if setup.stage(name) == "0" else 8.0 * largest
    full = EngineState(weights=b * (trained + frozen), largest=b * largest, norm_work=wide)
    if setup.stage(name) == "0":
        return stage_0(full, trained, b)
    if setup.stage(name) == "1":
        return stage_1(full, trained, setup, bucket)
    if setup.stage(name) == "2":
        return stage_2(full, trained, setup, bucket, several)
    state = stage_3(full, trained, frozen, setup, bucket, shape.hidden)
    return offloaded(state, setup) if setup.stage(name) == "3+offload" else state


def stage_0(full: EngineState, trained: int, b: int) -> EngineState:
    half = b < 4
    return replace(
        full,
        masters=4.0 * trained if half else 0.0,
        moments=8.0 * trained,
        gradients=b * trained,
        reduce_work=b * min(trained, ALL_REDUCE_BUCKET),  # a bucket is copied into one tensor
        step_work=4.0 * trained if half else 0.0,
    )


def stage_1(full: EngineState, trained: int, setup: Setup, bucket: int) -> EngineState:
    b, shard = BYTES[setup.precision], trained / setup.world
    state = replace(full, masters=4 * shard, moments=8 * shard)
    if setup.precision == "bf16":  # bf16 and fp32 gradients exist at all times
        return replace(state, gradients=6.0 * trained, always=True, reduce_work=2.0 * trained)
    return replace(
        state,
        gradients=4.0 * trained,
        buckets=4.0 * bucket,
        reduce_work=(4 * shard if setup.device == "cuda" else 0.0) + (full.largest if setup.world > 1 else 0.0),
        step_work=4 * shard if b == 4 else 0.0,
    )


def stage_2(full: EngineState, trained: int, setup: Setup, bucket: int, several: bool) -> EngineState:
    b, shard = BYTES[setup.precision], trained / setup.world
    return replace(
        full,
        masters=4 * shard,
        moments=8 * shard,
        gradients=4 * shard,
        early=4 * shard if setup.device == "cuda" or b < 4 else 0.0,  # written in half precision, else only allocated
        second=4 * shard if several and b == 4 else 0.0,  # in half precision they accumulate in place
        buckets=float(b * bucket),
        reduce_work=(full.largest if setup.world > 1 else 0.0) + (2 * full.largest if b < 4 else 0.0),
        step_work=4 * shard if b == 4 else 0.0,  # copied into one flat tensor
    )


def stage_3(full: EngineState, trained: int, frozen: int, setup: Setup, bucket: int, hidden: int) -> EngineState:
    b, shard = BYTES[setup.precision], trained / setup.world
    gathered = 0.0 if setup.world == 1 else b * min(trained + frozen, MAX_LIVE)  # on one rank nothing is sharded
    return replace(
        full,
        weights=full.weights / setup.world,
        masters=4 * shard if b < 4 else 0.0,
        moments=8 * shard,
        gradients=4 * shard,
        always=True,
        buckets=float(b * bucket),
        reduce_work=full.largest,
        step_work=4 * min(shard, SUB_GROUP),
        live=gathered + b * 0.9 * hidden**2,  # stage3_prefetch_bucket_size
    )


def offloaded(state: EngineState, setup: Setup) -> EngineState:
    """Moves optimizer and weights to the host. The GPU keeps gathered weights, and gradients until they are sent."""
    host = state.weights + state.masters + state.moments + 2 * state.gradients
    if setup.precision == "fp32":  # here masters are separate, while stage 3 in fp32 else uses the weights
        host += state.gradients
    return replace(state, weights=0.0, masters=0.0, moments=0.0, gradients=0.0, always=False, step_work=0.0, host=host)
