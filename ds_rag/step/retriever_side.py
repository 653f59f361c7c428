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
from ds_rag.index.passage_vectors import PassageVectors
from ds_rag.runtime import collectives
from ds_rag.runtime.errors import UserError
from ds_rag.step.two_pass import Gradients, Inputs, OnePass, Pass, TwoPass

Sides = tuple[Tokens, ...]  # queries, and passages where they are embedded


class Embedding:
    """Calls the retriever's engine. chunk: number of texts that it embeds at a time; 0: all of a micro-batch."""

    def __init__(self, engines: Engines, chunk: int = 0):
        self.engines, self.chunk = engines, chunk

    def forward(self, batch: Batch, last: bool) -> Embedded:
        """Embeddings of the batch's queries and passages. last: this is the last micro-batch of the optimizer step."""
        return self.embed(batch, (batch.queries, batch.passages), last)

    def embed(self, batch: Batch, sides: Sides, last: bool, constant_ND: torch.Tensor | None = None) -> Embedded:
        """Embeds `sides`: the batch's queries, and its passages unless their embeddings are the constants given."""
        parts = split_evenly(sides, self.chunk)
        run: Pass
        if len(parts) == 1:
            run = OnePass(self.engines, "retriever", both(sides), last)
        else:
            run = TwoPass(self.engines, "retriever", [partial(take_rows, sides, p) for p in parts], last)
        return Embedded(run, parts, batch, constant_ND)


class ConstantPassages:
    """`Embedding` of queries alone: the embeddings of passages are constants, which `vectors` holds.

    They have no forward and no gradient. (Lewis et al. 2020, arXiv:2005.11401, section 2.4: the encoder of documents
    and the index are kept fixed.)
    """

    def __init__(self, embedding: Embedding, vectors: PassageVectors):
        self.embedding, self.vectors = embedding, vectors

    def forward(self, batch: Batch, last: bool) -> Embedded:
        """Embeddings of the batch's queries, and the vectors of all passages of its pool, on every rank."""
        p_ND = torch.from_numpy(self.vectors.take(batch.passage_numbers)).to(batch.own_BN.device)
        return self.embedding.embed(batch, (batch.queries,), last, p_ND)


class Embedded:
    """The handle of one forward: its `outputs`, and `backward`, which may be called once with their gradients.

    outputs: the embeddings of the queries (B, D) and of all passages of the pool (N, D), the temperature (0-d), and
    BM25's weight (0-d) if the retriever has one; all float32 leaves that require a gradient. constant_ND: the passages'
    embeddings where they are constants; `outputs` are then without them. sides: how many were embedded, 1 or 2.
    """

    def __init__(
        self, run: Pass, parts: Sequence[tuple[Slice, ...]], batch: Batch, constant_ND: torch.Tensor | None = None
    ):
        self.parts, self.shares, self.words_BN, self.constant_ND = parts, batch.shares, batch.words_BN, constant_ND
        self.run: Pass | None = run
        self.sides = len(parts[0])
        every = [in_order([p[n] for p in parts], [o[n] for o in run.outputs]) for n in range(self.sides)]
        if batch.shares:
            owned = [s.rows for s in batch.shares], [s.columns for s in batch.shares]
            every = [collectives.gather_rows(x.float(), owned[n]) for n, x in enumerate(every)]
        every += run.outputs[0][self.sides :]
        self.outputs = [x.detach().float().clone().requires_grad_() for x in every]
        self.read = [tokens.mask_BT for tokens in (batch.queries, batch.passages)[: self.sides]]

    @property
    def tokens(self) -> int:
        """How many the retriever has read; waits for the device."""
        return sum(int(mask_BT.sum()) for mask_BT in self.read)

    @property
    def scores_BN(self) -> torch.Tensor:
        """Dot products divided by the temperature, plus BM25 times its weight if the retriever has one; differentiable
        with respect to `outputs`. Raises UserError for a batch whose loader knows no words."""
        p_ND = self.outputs[1] if self.constant_ND is None else self.constant_ND
        temperature, *weight = self.outputs[self.sides :]
        scores_BN = self.outputs[0] @ p_ND.T / temperature
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
    def watched(self) -> torch.Tensor:
        """The embeddings whose spread shows a collapse: those of the passages, where they are constants of the
        queries."""
        return self.outputs[self.sides - 1]

    @property
    def on_this_rank(self) -> list[torch.Tensor]:
        """The embeddings that this rank has computed: those of its queries and of its passages."""
        sides = self.outputs[: self.sides]
        return [x[rows] for x, rows in zip(sides, self._own_rows(), strict=True)] if self.shares else sides

    def _own_rows(self) -> list[list[int]]:
        """For each side the rows of a pool shared by all ranks that this rank embeds."""
        own = self.shares[collectives.rank()]
        return [own.rows, own.columns][: self.sides]

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
        of_sides, others = grads[: self.sides], grads[self.sides :]
        if self.shares:
            of_sides = [Slice(rows).gradient(g) for rows, g in zip(self._own_rows(), of_sides, strict=True)]
            others = [g / len(self.shares) for g in others]

        def of_chunk(c: int) -> Gradients:
            chunk = [part.gradient(g) for part, g in zip(self.parts[c], of_sides, strict=True)]
            return [*chunk, *(g if c == 0 else None for g in others)]

        run.backward(of_chunk)


def both(sides: Sides) -> Inputs:
    """The inputs of the retriever: queries, and passages or None."""
    return sides if len(sides) == 2 else (*sides, None)


def take_rows(sides: Sides, part: tuple[Slice, ...]) -> Inputs:
    """The inputs of one chunk."""
    return both(tuple(tokens.take(rows.read) for tokens, rows in zip(sides, part, strict=True)))


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


def split_evenly(sides: Sides, chunk: int) -> list[tuple[Slice, ...]]:
    """The texts of each side, sorted by length, in chunks of about `chunk` texts; the same number of chunks on all
    ranks."""
    counts = [len(tokens.ids_BT) for tokens in sides]
    wanted = 1 if chunk <= 0 else -(-sum(counts) // chunk)
    chunks = int(collectives.all_max({"n": wanted}, sides[0].ids_BT.device)["n"]) if chunk > 0 else 1
    if chunks == 1:
        return [tuple(Slice(range(count)) for count in counts)]
    split = []
    for tokens in sides:
        order = tokens.mask_BT.sum(1).argsort(stable=True).tolist()
        edges = [round(c * len(order) / chunks) for c in range(chunks + 1)]
        split.append([Slice(order[a:b]) for a, b in pairwise(edges)])
    return list(zip(*split, strict=True))


def in_order(slices: Sequence[Slice], parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The embeddings of all chunks in the order of the rows. parts: one tensor for each slice."""
    kept = [part[: len(s.rows)] for s, part in zip(slices, parts, strict=True)]
    rows = [r for s in slices for r in s.rows]
    joined = torch.cat(kept)
    out = torch.empty_like(joined)
    out[torch.tensor(rows, dtype=torch.int64, device=joined.device)] = joined
    return out
