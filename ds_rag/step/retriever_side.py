"""The retriever's side of a step: the embeddings of both sides, and the backward from their gradients.

Shape legend: B queries, N passages of the pool, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch

from ds_rag.data.batch import Batch, Tokens
from ds_rag.engines.engine_pair import Engines
from ds_rag.runtime import collectives
from ds_rag.step.two_pass import Gradients, Inputs, OnePass, Pass, TwoPass


class Embedding:
    """Calls the retriever's engine. chunk: texts that it embeds at a time; 0: all of a micro-batch."""

    def __init__(self, engines: Engines, chunk: int = 0):
        self.engines, self.chunk = engines, chunk

    def forward(self, batch: Batch, last: bool) -> Embedded:
        """last: this is the last micro-batch of the optimizer step."""
        parts = split_evenly(batch.queries, batch.passages, self.chunk)
        run: Pass
        if len(parts) == 1:
            run = OnePass(self.engines, "retriever", (batch.queries, batch.passages), last)
        else:
            chunks = [partial(take_both, batch, q.read, p.read) for q, p in parts]
            run = TwoPass(self.engines, "retriever", chunks, last)
        return Embedded(run, parts, batch)


class Embedded:
    """The handle of one forward: `outputs`, and one `backward` from their gradients.

    outputs: (B, D), (N, D) of the whole pool, and the temperature (0-d): float32 leaves that require a gradient.
    """

    def __init__(self, run: Pass, parts: Sequence[tuple[Slice, Slice]], batch: Batch):
        self.parts, self.shares = parts, batch.shares
        self.run: Pass | None = run
        own = [in_order([p[side] for p in parts], [o[side] for o in run.outputs]) for side in (0, 1)]
        shares = batch.shares
        every = [
            collectives.gather_rows(own[0].float(), [s.rows for s in shares]) if shares else own[0],
            collectives.gather_rows(own[1].float(), [s.columns for s in shares]) if shares else own[1],
            run.outputs[0][2],
        ]
        self.outputs = [x.detach().float().clone().requires_grad_() for x in every]

    @property
    def scores_BN(self) -> torch.Tensor:
        """Dot products divided by the temperature; differentiable with respect to `outputs`."""
        q_BD, p_ND, temperature = self.outputs
        return q_BD @ p_ND.T / temperature

    @property
    def own(self) -> list[torch.Tensor]:
        """The embeddings that this rank has made."""
        q_BD, p_ND, _ = self.outputs
        if not self.shares:
            return [q_BD, p_ND]
        mine = self.shares[collectives.rank()]
        return [q_BD[list(mine.rows)], p_ND[list(mine.columns)]]

    def backward(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """gradients: of `outputs`, None for zero. With a pool of the world every rank has the whole, and sends its
        share of the embeddings' on; the temperature's is the same on all, and the engines take the mean over ranks, so
        only the shares keep the factor `world` that the objective has put on (see runtime/collectives.py)."""
        run, self.run = self.run, None  # the graph, or what the chunks are made of, is let go
        assert run is not None, "a forward has one backward"
        pairs = zip(gradients, self.outputs, strict=True)
        grads = [torch.zeros_like(x) if g is None else g for g, x in pairs]
        if self.shares:
            own = self.shares[collectives.rank()]
            sides = [Slice(rows).gradient(g) for rows, g in zip((own.rows, own.columns), grads[:2], strict=True)]
            grads = [*sides, grads[2] / len(self.shares)]

        def of_chunk(c: int) -> Gradients:
            of_queries, of_passages = (part.gradient(g) for part, g in zip(self.parts[c], grads[:2], strict=True))
            return of_queries, of_passages, grads[2] if c == 0 else None

        run.backward(of_chunk)


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


def in_order(slices: Sequence[Slice], parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Chunks' embeddings in the rows' own order."""
    kept = [part[: len(s.own)] for s, part in zip(slices, parts, strict=True)]
    rows = [r for s in slices for r in s.own]
    whole = torch.cat(kept)
    out = torch.empty_like(whole)
    out[torch.tensor(rows, dtype=torch.int64, device=whole.device)] = whole
    return out
