"""One model's forward and backward within a micro-batch: at once, or chunk by chunk from cached gradients.

Chunk by chunk, the forward is run twice: first without a graph, for the outputs that the objective needs; then, with
the objective's gradient at hand, again for each chunk with its backward at once, so that the memory is that of one
chunk. Random states are replayed: dropout is the same in both, and the gradient is that of one function.
(GradCache: Gao et al. 2021, arXiv:2101.06983.)

Shape legend: B queries, N passages of the pool, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from ds_rag.data.batch import Batch, Tokens
from ds_rag.engines.joint import Engines
from ds_rag.runtime import collectives
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


class Embedding:
    """The retriever's side of a step. chunk: texts that it embeds at a time; 0: all of a micro-batch."""

    def __init__(self, engines: Engines, chunk: int = 0):
        self.engines, self.chunk = engines, chunk

    def forward(self, batch: Batch, last: bool) -> list[torch.Tensor]:
        """Leaves (B, D), (N, D) of the whole pool, and the temperature (0-d); float32."""
        self.batch = batch
        self.parts = split_evenly(batch.queries, batch.passages, self.chunk)
        if len(self.parts) == 1:
            self.run: Pass | None = OnePass(self.engines, "retriever", (batch.queries, batch.passages), last)
        else:
            chunks = [partial(take_both, batch, q.read, p.read) for q, p in self.parts]
            self.run = TwoPass(self.engines, "retriever", chunks, last)
        own = [join([p[side] for p in self.parts], [o[side] for o in self.run.outputs]) for side in (0, 1)]
        shares = batch.shares
        wholes = [
            collectives.gather_rows(own[0].float(), [s.rows for s in shares]) if shares else own[0],
            collectives.gather_rows(own[1].float(), [s.columns for s in shares]) if shares else own[1],
            self.run.outputs[0][2],
        ]
        self.leaves = [x.detach().float().clone().requires_grad_() for x in wholes]
        return self.leaves

    def backward(self) -> None:
        """From the leaves' gradients. With a pool of the world every rank has the whole, and sends its share of the
        embeddings' on; the temperature's is the same on all, and the engines take the mean over ranks, so only the
        shares keep the factor `world` that the objective has put on (see collectives.py)."""
        shares = self.batch.shares
        grads = [x.grad if x.grad is not None else torch.zeros_like(x) for x in self.leaves]
        if shares:
            own = shares[collectives.rank()]
            sides = [Slice(rows).gradient(g) for rows, g in zip((own.rows, own.columns), grads[:2], strict=True)]
            grads = [*sides, grads[2] / len(shares)]

        def of_chunk(c: int) -> Gradients:
            of_queries, of_passages = (part.gradient(g) for part, g in zip(self.parts[c], grads[:2], strict=True))
            return of_queries, of_passages, grads[2] if c == 0 else None

        assert self.run is not None
        self.run.backward(of_chunk)
        self.run = None


def take_both(batch: Batch, queries: Sequence[int], passages: Sequence[int]) -> Inputs:
    return batch.queries.take(queries), batch.passages.take(passages)


class Slice:
    """Rows of one side that a chunk embeds. read: never empty, for every forward needs both sides; own: those whose
    embedding counts."""

    def __init__(self, rows: Sequence[int]):
        self.own = list(rows)
        self.read = self.own or [0]

    def gradient(self, grad: torch.Tensor) -> torch.Tensor:
        return grad[self.own] if self.own else grad.new_zeros(1, *grad.shape[1:])


def split_evenly(queries: Tokens, passages: Tokens, chunk: int) -> list[tuple[Slice, Slice]]:
    """The texts of both sides in chunks of about `chunk`, by length; as many on every rank."""
    counts = len(queries.ids_BT), len(passages.ids_BT)
    wanted = 1 if chunk <= 0 else -(-sum(counts) // chunk)
    chunks = int(collectives.all_max({"n": wanted}, queries.ids_BT.device)["n"]) if chunk > 0 else 1
    if chunks == 1:
        return [(Slice(range(counts[0])), Slice(range(counts[1])))]
    sides = []
    for tokens in (queries, passages):
        order = tokens.mask_BT.sum(1).argsort(stable=True).tolist()
        edges = [round(c * len(order) / chunks) for c in range(chunks + 1)]
        sides.append([Slice(order[a:b]) for a, b in pairwise(edges)])
    return list(zip(*sides, strict=True))


def join(slices: Sequence[Slice], parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Chunks' embeddings in the rows' own order."""
    kept = [part[: len(s.own)] for s, part in zip(slices, parts, strict=True)]
    rows = [r for s in slices for r in s.own]
    whole = torch.cat(kept)
    out = torch.empty_like(whole)
    out[torch.tensor(rows, dtype=torch.int64, device=whole.device)] = whole
    return out
