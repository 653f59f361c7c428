"""One model's forward and backward within a micro-batch: at once, or chunk by chunk from cached gradients.

Chunk by chunk, the forward is run twice: first without a graph, to get the outputs that the objective needs; then,
once the objective's gradient is known, again for each chunk, followed immediately by that chunk's backward. So only the
memory for one chunk is needed. Random states are replayed, so that dropout is the same in both forwards and the result
is the exact gradient. (GradCache: Gao et al. 2021, arXiv:2101.06983.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ds_rag.engines.engine_pair import Engines
from ds_rag.runtime.random_state import random_states, set_random_states

Inputs = tuple[Any, ...]
Gradients = Sequence[torch.Tensor | None]  # of one chunk's outputs; None: zero


class Pass:
    """`outputs[c]` is what the forward of chunk c returned, detached; `backward` sends gradients through the model.

    Drop the reference after the backward: it keeps the graph, or the inputs of the chunks, in memory.
    """

    def __init__(self, engines: Engines, name: str, last: bool):
        self.engines, self.name, self.last = engines, name, last
        self.outputs: list[tuple[torch.Tensor, ...]] = []

    def backward(self, gradients: Callable[[int], Gradients]) -> None:
        """`gradients(c)` returns the gradients of chunk c's outputs; it is called when they are needed."""
        raise AssertionError("a Pass is OnePass or TwoPass")


class OnePass(Pass):
    """One chunk, whose graph is kept from forward to backward."""

    def __init__(self, engines: Engines, name: str, inputs: Inputs, last: bool):
        super().__init__(engines, name, last)
        engines.boundary(last, only={name})
        self.attached = as_tuple(getattr(engines, name)(*inputs))
        self.outputs = [tuple(x.detach() for x in self.attached)]

    def backward(self, gradients: Callable[[int], Gradients]) -> None:
        self.engines.backward(self.name, self.attached, gradients(0))


class TwoPass(Pass):
    """Any number of chunks: a forward of each without a graph, then a forward and backward of each.

    chunks: functions that make the inputs of a chunk, so that only the inputs of one chunk exist at a time.
    scored=False: skips the forwards without a graph, for chunks whose outputs are known already; `outputs` is empty.
    """

    def __init__(
        self, engines: Engines, name: str, chunks: Sequence[Callable[[], Inputs]], last: bool, scored: bool = True
    ):
        super().__init__(engines, name, last)
        self.chunks = chunks
        self.states: list[dict[str, torch.Tensor]] = []
        if not scored:
            return
        module = engines.modules[name]  # not the engine: its forward prepares for a backward
        with torch.no_grad():
            for make_inputs in chunks:
                self.states.append(random_states())
                self.outputs.append(as_tuple(module(*make_inputs())))

    def backward(self, gradients: Callable[[int], Gradients]) -> None:
        if self.name not in self.engines.learning:
            return
        after = random_states()
        for c, make_inputs in enumerate(self.chunks):
            self.engines.boundary(self.last and c == len(self.chunks) - 1, only={self.name})
            if self.states:
                set_random_states(self.states[c])
            outputs = as_tuple(getattr(self.engines, self.name)(*make_inputs()))
            self.engines.backward(self.name, outputs, gradients(c))
            del outputs
        if self.states:
            set_random_states(after)


def as_tuple(outputs: Any) -> tuple[torch.Tensor, ...]:
    """The outputs of a model, without None: a side of the retriever that was not embedded."""
    return tuple(x for x in (outputs if isinstance(outputs, tuple) else (outputs,)) if x is not None)
