"""One model's forward and backward within a micro-batch: at once, or chunk by chunk from cached gradients.

Chunk by chunk, the forward is run twice: first without a graph, for the outputs that the objective needs; then, with
the objective's gradient at hand, again for each chunk with its backward at once, so that the memory is that of one
chunk. Random states are replayed: dropout is the same in both, and the gradient is that of one function.
(GradCache: Gao et al. 2021, arXiv:2101.06983.)
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
    """`outputs[c]` are what chunk c's forward returned, detached; `backward` sends their gradients through.

    To be let go after its backward: it holds the graph, or what the chunks are made of.
    """

    def __init__(self, engines: Engines, name: str, last: bool):
        self.engines, self.name, self.last = engines, name, last
        self.outputs: list[tuple[torch.Tensor, ...]] = []

    def backward(self, gradients: Callable[[int], Gradients]) -> None:
        """`gradients(c)`: those of chunk c's outputs, asked for when they are needed."""
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
    """Any number of chunks, forward without a graph, then each forward and backward.

    chunks: each makes its inputs when it is called, so that those of one chunk exist at a time. scored=False: only the
    second half, for chunks that have been scored otherwise; `outputs` stays empty.
    """

    def __init__(
        self, engines: Engines, name: str, chunks: Sequence[Callable[[], Inputs]], last: bool, scored: bool = True
    ):
        super().__init__(engines, name, last)
        self.chunks = chunks
        self.states: list[dict[str, torch.Tensor]] = []
        if not scored:
            return
        module = engines.modules[name]  # not the engine, whose forward begins the bookkeeping of a backward
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
    return outputs if isinstance(outputs, tuple) else (outputs,)
