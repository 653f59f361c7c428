"""The peak memory of one rank: the state of both engines, and activations in each phase of a micro-batch.

The phases are those of `JointStep.step` (ds_rag/step/joint_step.py): the retriever's forward, whose graph is kept for
its backward; the generator's forward, in one pass or in chunks without a graph; the retriever's backward; the
generator's backward; the joint step.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_rag.commands.plan.setup import NAMES, Setup
from ds_rag.commands.plan.states import EngineState, engine_state


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one rank. phases: memory by name of the phase; the peak is the largest."""

    states: dict[str, EngineState]
    activations: dict[str, float]  # of each model: saved by its forward and needed in its backward
    logits: float  # those that are kept, and those of the chunk that is being computed
    phases: dict[str, float]

    @property
    def peak(self) -> float:
        return max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def host(self) -> float:
        """Bytes of host memory for this rank."""
        return sum(state.host for state in self.states.values())


@dataclass(frozen=True)
class Flow:
    """Bytes of the activations of one model in one pass."""

    kept: float  # saved by the forward
    work: float  # needed in the backward
    at_once: bool  # one pass: the graph is kept until the objective is computed; else chunks are run a second time


def retriever_flow(setup: Setup) -> Flow:
    load, activations = setup.work.retriever_chunk(setup.retriever_chunk), setup.activations("retriever")
    if setup.frozen == "retriever":
        return Flow(0.0, load.tokens * activations.working_per_token, False)
    kept, work = load.tokens * activations.saved_per_token, load.tokens * activations.working_per_token
    return Flow(kept, work, setup.retriever_chunks == 1)


def generator_flow(setup: Setup) -> tuple[Flow, float, float]:
    """(flow, bytes of kept logits, bytes while logits are computed)."""
    cells = setup.work.cells(setup.world)
    load, activations = (
        setup.work.chunk(setup.world, setup.micro_cells or cells),
        setup.activations("generator"),
    )
    work = load.tokens * activations.working_per_token
    at_work = activations.logit_work(load.targets)
    if setup.frozen == "generator":  # scored in chunks, without a graph
        return Flow(0.0, work, False), 0.0, at_work
    once = setup.micro_cells == 0
    return Flow(load.tokens * activations.saved_per_token, work, once), activations.logits(load.targets, once), at_work


def plan_memory(setup: Setup) -> MemoryPlan:
    """The memory of one rank in each phase."""
    states = {name: engine_state(setup, name) for name in NAMES}
    retriever, (generator, logits, at_work) = retriever_flow(setup), generator_flow(setup)
    r, g = (states[name] for name in NAMES)
    base = sum(s.fixed + s.live for s in states.values())
    held = {n: s.gradients if s.always or setup.work.accumulation > 1 else 0.0 for n, s in states.items()}
    waiting = generator.kept + logits if generator.at_once else 0.0  # until the generator's backward
    forward = base + sum(held.values()) + (retriever.kept if retriever.at_once else 0.0)
    forward += (waiting or generator.work) + at_work
    phases = {
        "forward": forward,
        "retriever backward": base + held["generator"] + waiting + backward(r, retriever, held["retriever"]),
        "generator backward": base + r.gradients + backward(g, generator, held["generator"], logits + at_work),
        "step": base + step(r, g),
    }
    kept = {"retriever": retriever.kept + retriever.work, "generator": generator.kept + generator.work}
    return MemoryPlan(states, kept, logits + at_work, phases)


def backward(state: EngineState, flow: Flow, held: float, logits: float = 0.0) -> float:
    """The peak of one engine's backward, which is in one of three places.

    They are the backward of the head, when all activations exist; the backward of the last layer, when the gradient
    buffers are allocated; and the end, when all gradients exist and no activations. held: bytes of gradients from
    earlier micro-batches.
    """
    if not state.gradients and not state.largest:
        return flow.work
    if state.second:  # the sum of the earlier backwards exists beside the next buffer
        held = state.gradients
    buffers = held + state.early if state.second else max(held, state.early)
    head = flow.kept + logits + held + (state.largest if logits else 0.0)
    begun = flow.kept + flow.work + buffers + state.buckets
    begun += state.largest + state.reduce_work if state.early else 0.0  # the head's gradient is reduced at once
    ended = state.gradients + state.second + state.largest + state.buckets + state.reduce_work
    return max(head, begun, ended)


def step(r: EngineState, g: EngineState) -> float:
    """The peak of the joint step: gradient norms of both engines, then the steps of one engine after the other."""
    first = r.gradients + g.gradients + max(r.norm_work, g.norm_work, r.step_work)
    return max(first, g.gradients + g.step_work + (r.gradients if r.always else 0.0))
