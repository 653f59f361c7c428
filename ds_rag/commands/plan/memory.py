"""The peak memory of one rank: what both engines hold, and activations, phase by phase through a micro-batch.

The phases are those of `train_step` (ds_rag/train.py): the retriever's forward, whose graph waits for its backward; the
generator's forward, whole or in chunks without a graph; the retriever's backward; the generator's; the joint step.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_rag.commands.plan.setup import NAMES, Setup
from ds_rag.commands.plan.states import EngineState, engine_state


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one rank. `phases`: by name; the peak is the largest of them."""

    states: dict[str, EngineState]
    activations: dict[str, float]  # what each model's forward keeps, at its largest
    logits: float  # kept, and while they are computed
    phases: dict[str, float]

    @property
    def peak(self) -> float:
        return max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def host(self) -> float:
        """Of the host, for this rank."""
        return sum(state.host for state in self.states.values())


@dataclass(frozen=True)
class Flow:
    """Activations of one model in one pass: kept by its forward, and the work of its backward."""

    kept: float
    work: float
    at_once: bool  # its graph waits for the objective; else each chunk is run again then


def retriever_flow(setup: Setup) -> Flow:
    load, activations = setup.work.retriever_chunk(setup.retriever_chunk), setup.activations("retriever")
    if setup.frozen == "retriever":
        return Flow(0.0, load.tokens * activations.working_per_token, False)
    kept, work = load.tokens * activations.saved_per_token, load.tokens * activations.working_per_token
    return Flow(kept, work, setup.retriever_chunks == 1)


def generator_flow(setup: Setup) -> tuple[Flow, float, float]:
    """(flow, kept logits, logits at work)."""
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
    states = {name: engine_state(setup, name) for name in NAMES}
    retriever, (generator, logits, at_work) = retriever_flow(setup), generator_flow(setup)
    r, g = (states[name] for name in NAMES)
    base = sum(s.fixed + s.live for s in states.values())
    held = {n: s.gradients if s.always or setup.work.accumulation > 1 else 0.0 for n, s in states.items()}
    waiting = generator.kept + logits if generator.at_once else 0.0  # for the generator's backward
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
    """The most of: the head's backward, all activations still there; the last layer's, with gradients begun; the end,
    with gradients whole and activations gone."""
    if not state.gradients and not state.largest:
        return flow.work
    if state.second:  # the sum of the backwards before, and the next buffer
        held = state.gradients
    buffers = held + state.early if state.second else max(held, state.early)
    head = flow.kept + logits + held + (state.largest if logits else 0.0)
    begun = flow.kept + flow.work + buffers + state.buckets
    begun += state.largest + state.reduce_work if state.early else 0.0  # the head's gradient is reduced at once
    ended = state.gradients + state.second + state.largest + state.buckets + state.reduce_work
    return max(head, begun, ended)


def step(r: EngineState, g: EngineState) -> float:
    """Gradient norms of both; then one engine's step after the other."""
    first = r.gradients + g.gradients + max(r.norm_work, g.norm_work, r.step_work)
    return max(first, g.gradients + g.step_work + (r.gradients if r.always else 0.0))
