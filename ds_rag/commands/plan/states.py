"""What one rank holds of an engine besides activations, as DeepSpeed 0.19.8 allocates it.

P trained elements, W ranks, b bytes of an element of the model. Per rank, in bytes (files of deepspeed/runtime):

    stage, precision      weights  masters  Adam's  gradients          where
    0  fp32               4P       -        8P      4P                 the plain optimizer
    0  bf16, fp16         2P       4P       8P      2P, at step 4P     fp16/unfused_optimizer.py
    1  bf16               2P       4P/W     8P/W    4P + 2P, always    bf16_optimizer.py
    1  fp32, fp16         bP       4P/W     8P/W    4P, at step 4P/W   zero/stage_1_and_2.py
    2  fp32               4P       4P/W     8P/W    4P/W, at step 8P/W zero/stage_1_and_2.py
    2  bf16, fp16         2P       4P/W     8P/W    4P/W               zero/stage_1_and_2.py
    3  fp32               4P/W     -        8P/W    4P/W               zero/stage3.py
    3  bf16, fp16         2P/W     4P/W     8P/W    4P/W               zero/stage3.py

Stages 1 and 2 clone the rank's share as masters in fp32 too. Gradients of stages 1 to 3 accumulate in fp32
(`grad_accum_dtype`, deepspeed_config/resolve.py). Weights that are not trained are whole on every rank, but at stage 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ds_rag.commands.plan.activations import BYTES
from ds_rag.commands.plan.setup import Setup

MIN_BUCKET = 1 << 20  # elements, as deepspeed_config/resolve.py
ALL_REDUCE_BUCKET = 500_000_000  # elements of stage 0's buckets (deepspeed_engine.py)
MAX_LIVE = 1_000_000_000  # stage3_max_live_parameters and stage3_max_reuse_distance, elements
SUB_GROUP = 1_000_000_000  # elements that stage 3 steps at once


@dataclass(frozen=True)
class EngineState:
    """Bytes of one engine on one rank. On the GPU, but `host`."""

    weights: float = 0.0
    masters: float = 0.0
    moments: float = 0.0  # Adam's two
    gradients: float = 0.0  # from the backward to the step
    always: bool = False  # the gradients' buffers are there in the forward too
    early: float = 0.0  # of `gradients`, what the first reduced bucket allocates
    second: float = 0.0  # another copy while several backwards accumulate
    buckets: float = 0.0  # in the backward
    largest: float = 0.0  # one gradient as autograd makes it: of the embedding, or the head
    reduce_work: float = 0.0  # at the end of the backward
    norm_work: float = 0.0  # gradient norms are taken in float64, a tensor at a time
    step_work: float = 0.0
    live: float = 0.0  # weights that stage 3 has gathered
    host: float = 0.0

    @property
    def fixed(self) -> float:
        return self.weights + self.masters + self.moments


def engine_state(setup: Setup, name: str) -> EngineState:
    """Of one of the two engines; a model that does not learn is plain weights."""
    trained, still = setup.parameters(name)
    b = BYTES[setup.precision]
    if not trained:
        return EngineState(weights=b * still)
    shape, several = setup.shape(name), setup.backwards(name) > 1
    largest = min(trained, shape.largest_parameter)
    bucket = max(shape.hidden**2, MIN_BUCKET)
    wide = 0.0 if setup.stage(name) == "0" else 8.0 * largest
    whole = EngineState(weights=b * (trained + still), largest=b * largest, norm_work=wide)
    if setup.stage(name) == "0":
        return stage_0(whole, trained, b)
    if setup.stage(name) == "1":
        return stage_1(whole, trained, setup, bucket)
    if setup.stage(name) == "2":
        return stage_2(whole, trained, setup, bucket, several)
    state = stage_3(whole, trained, still, setup, bucket, shape.hidden)
    return offloaded(state, setup) if setup.stage(name) == "3+offload" else state


def stage_0(whole: EngineState, trained: int, b: int) -> EngineState:
    half = b < 4
    return replace(
        whole,
        masters=4.0 * trained if half else 0.0,
        moments=8.0 * trained,
        gradients=b * trained,
        reduce_work=b * min(trained, ALL_REDUCE_BUCKET),  # buckets are joined to one tensor
        step_work=4.0 * trained if half else 0.0,
    )


def stage_1(whole: EngineState, trained: int, setup: Setup, bucket: int) -> EngineState:
    b, share = BYTES[setup.precision], trained / setup.world
    state = replace(whole, masters=4 * share, moments=8 * share)
    if setup.precision == "bf16":  # both kinds of gradients are kept from step to step
        return replace(state, gradients=6.0 * trained, always=True, reduce_work=2.0 * trained)
    return replace(
        state,
        gradients=4.0 * trained,
        buckets=4.0 * bucket,
        reduce_work=(4 * share if setup.device == "cuda" else 0.0) + (whole.largest if setup.world > 1 else 0.0),
        step_work=4 * share if b == 4 else 0.0,
    )


def stage_2(whole: EngineState, trained: int, setup: Setup, bucket: int, several: bool) -> EngineState:
    b, share = BYTES[setup.precision], trained / setup.world
    return replace(
        whole,
        masters=4 * share,
        moments=8 * share,
        gradients=4 * share,
        early=4 * share if setup.device == "cuda" or b < 4 else 0.0,  # zeroed in half types, else only allocated
        second=4 * share if several and b == 4 else 0.0,  # in the half types they accumulate in place
        buckets=float(b * bucket),
        reduce_work=(whole.largest if setup.world > 1 else 0.0) + (2 * whole.largest if b < 4 else 0.0),
        step_work=4 * share if b == 4 else 0.0,  # joined to one flat tensor
    )


def stage_3(whole: EngineState, trained: int, still: int, setup: Setup, bucket: int, hidden: int) -> EngineState:
    b, share = BYTES[setup.precision], trained / setup.world
    gathered = 0.0 if setup.world == 1 else b * min(trained + still, MAX_LIVE)  # on one rank nothing is sharded
    return replace(
        whole,
        weights=whole.weights / setup.world,
        masters=4 * share if b < 4 else 0.0,
        moments=8 * share,
        gradients=4 * share,
        always=True,
        buckets=float(b * bucket),
        reduce_work=whole.largest,
        step_work=4 * min(share, SUB_GROUP),
        live=gathered + b * 0.9 * hidden**2,  # stage3_prefetch_bucket_size
    )


def offloaded(state: EngineState, setup: Setup) -> EngineState:
    """Optimizer and weights on the host; on the GPU what is gathered, and gradients on their way."""
    host = state.weights + state.masters + state.moments + 2 * state.gradients
    if setup.precision == "fp32":  # masters beside the weights, which stage 3 else shares
        host += state.gradients
    return replace(state, weights=0.0, masters=0.0, moments=0.0, gradients=0.0, always=False, step_work=0.0, host=host)
