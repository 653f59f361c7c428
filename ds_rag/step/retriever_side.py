"""The retriever's side of a step: embeddings of queries and passages, and the backward pass from their gradients.

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
from ds_rag.runtime.errors import UserError
from ds_rag.step.two_pass import Gradients, Inputs, OnePass, Pass, TwoPass


class Embedding:
    """Calls the retriever's engine. chunk: number of texts that it embeds at a time; 0: all of a micro-batch."""

    def __init__(self, engines: Engines, chunk: int = 0):
        self.engines, self.chunk = engines, chunk

    def forward(self, batch: Batch, last: bool) -> Embedded:
        """Embeddings of the batch's queries and passages. last: this is the last micro-batch of the optimizer step."""
        parts = split_evenly(batch.queries, batch.passages, self.chunk)
        run: Pass
        if len(parts) == 1:
            run = OnePass(self.engines, "retriever", (batch.queries, batch.passages), last)
        else:
            chunks = [partial(take_both, batch, q.read, p.read) for q, p in parts]
            run = TwoPass(self.engines, "retriever", chunks, last)
        return Embedded(run, parts, batch)


class Embedded:
    """The handle of one forward: its `outputs`, and `backward`, which may be called once with their gradients.

    outputs: the embeddings of the queries (B, D) and of all passages of the pool (N, D), the temperature (0-d), and
    BM25's weight (0-d) if the retriever has one; all float32 leaves that require a gradient.
    """

    def __init__(self, run: Pass, parts: Sequence[tuple[Slice, Slice]], batch: Batch):
        self.parts, self.shares, self.words_BN = parts, batch.shares, batch.words_BN
        self.run: Pass | None = run
        made = [in_order([p[side] for p in parts], [o[side] for o in run.outputs]) for side in (0, 1)]
        shares = batch.shares
        every = [
            collectives.gather_rows(made[0].float(), [s.rows for s in shares]) if shares else made[0],
            collectives.gather_rows(made[1].float(), [s.columns for s in shares]) if shares else made[1],
            *run.outputs[0][2:],
        ]
        self.outputs = [x.detach().float().clone().requires_grad_() for x in every]

    @property
    def scores_BN(self) -> torch.Tensor:
        """Dot products divided by the temperature, plus BM25 times its weight if the retriever has one; differentiable
        with respect to `outputs`. Raises UserError for a batch whose loader knows no words."""
        q_BD, p_ND, temperature, *weight = self.outputs
        scores_BN = q_BD @ p_ND.T / temperature
        if not weight:
            return scores_BN
        if self.words_BN is None:
            raise UserError(
                "a retriever with a weight of BM25, and a batch without words",
                found="a Loader without `words`",
                expected="that of load_rows, or loader.words = LexicalPairs(queries, texts)",
            )
        return scores_BN + weight[0] * self.words_BN

    @property
    def on_this_rank(self) -> list[torch.Tensor]:
        """The embeddings that this rank has computed: those of its queries and of its passages."""
        q_BD, p_ND, *_ = self.outputs
        if not self.shares:
            return [q_BD, p_ND]
        mine = self.shares[collectives.rank()]
        return [q_BD[list(mine.rows)], p_ND[list(mine.columns)]]

    def backward(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Sends gradients through the retriever. gradients: with respect to `outputs`, None for zero.

        With `--pool world` every rank has the gradient of all embeddings and backpropagates only the rows that it
        embedded. The engines average gradients over ranks, so these rows need the factor `world` that the objective
        has applied. The gradients of the temperature and of BM25's weight are the same on all ranks, so that factor is
        divided out of them (see runtime/collectives.py).
        """
        run, self.run = self.run, None  # frees the graph, or the inputs of the chunks
        assert run is not None, "a forward has one backward"
        pairs = zip(gradients, self.outputs, strict=True)
        grads = [torch.zeros_like(x) if g is None else g for g, x in pairs]
        if self.shares:
            mine = self.shares[collectives.rank()]
            sides = [Slice(rows).gradient(g) for rows, g in zip((mine.rows, mine.columns), grads[:2], strict=True)]
            grads = [*sides, *(g / len(self.shares) for g in grads[2:])]

        def of_chunk(c: int) -> Gradients:
            of_queries, of_passages = (part.gradient(g) for part, g in zip(self.parts[c], grads[:2], strict=True))
            return of_queries, of_passages, *(g if c == 0 else None for g in grads[2:])

        run.backward(of_chunk)


def take_both(batch: Batch, queries: Sequence[int], passages: Sequence[int]) -> Inputs:
    return batch.queries.take(queries), batch.passages.take(passages)


class Slice:
    """The rows of the queries, or of the passages, that one chunk embeds.

    rows: possibly none. read: the rows that are embedded: `rows`, or row 0 if there are none, because every
    forward needs a query and a passage; that embedding is then not used.
    """

    def __init__(self, rows: Sequence[int]):
        self.rows = list(rows)
        self.read = self.rows or [0]

    def gradient(self, grad: torch.Tensor) -> torch.Tensor:
        """The gradient of the rows in `read`; zero if `rows` is empty. grad: of all rows."""
        return grad[self.rows] if self.rows else grad.new_zeros(1, *grad.shape[1:])


def split_evenly(queries: Tokens, passages: Tokens, chunk: int) -> list[tuple[Slice, Slice]]:
    """Queries and passages, sorted by length, in chunks of about `chunk` texts; the same number of chunks on all
    ranks."""
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
    """The embeddings of all chunks in the order of the rows. parts: one tensor for each slice."""
    kept = [part[: len(s.rows)] for s, part in zip(slices, parts, strict=True)]
    rows = [r for s in slices for r in s.rows]
    joined = torch.cat(kept)
    out = torch.empty_like(joined)
    out[torch.tensor(rows, dtype=torch.int64, device=joined.device)] = joined
    return out
