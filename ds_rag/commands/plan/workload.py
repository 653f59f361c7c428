"""How many tokens one micro-batch makes each model read, on one rank, and how many (query, key) pairs.

Every text is taken to be at its longest. Symbols: B queries a rank, n passages a row, K candidates a query, W ranks.
The layout is that of models/shared_prefix/layout.py: each passage once for all queries that read it, then what follows
it in each cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

# Tokens of the default prompt beside passage, query and answer: those that are read once with the passage (what stands
# before it, and what leads to the query), and those of each cell (with the answer's end-of-sequence token).
PROMPT_BEFORE, PROMPT_AFTER = 6, 5


@dataclass(frozen=True)
class Load:
    """What one model reads in one forward pass over a whole micro-batch, and predicts."""

    tokens: float
    pairs: float  # (query, key) pairs that are not masked, of one layer
    targets: float = 0.0  # predicted tokens
    texts: float = 0.0  # sequences, or cells


@dataclass(frozen=True)
class Workload:
    """Batch shapes, in tokens of each model's tokenizer; lengths as read, prompt included."""

    batch: int = 16  # B
    candidates: int | None = 8  # K; None: all of the pool
    passages: int = 1  # n
    query: int = 64
    passage: int = 200
    answer: int = 64
    accumulation: int = 1
    world_pool: bool = False
    before: int = PROMPT_BEFORE
    after: int = PROMPT_AFTER
    shared: bool = True  # prefixes are

    def pool(self, world: int) -> int:
        """N: passages that a query chooses from."""
        return self.batch * self.passages * (world if self.world_pool else 1)

    def per_query(self, world: int) -> int:
        """K, at most the pool."""
        pool = self.pool(world)
        return pool if self.candidates is None else min(pool, self.candidates)

    def cells(self, world: int) -> int:
        """(query, passage) pairs that one rank's generator scores in a micro-batch.

        In a pool of the world there are W B K of them, and each rank has those of its own passages: one W-th.
        """
        return self.batch * self.per_query(world)

    def prefixes(self, world: int) -> int:
        """Distinct passages that one rank's generator reads: its own, but no more than there are cells."""
        return min(self.batch * self.passages, self.cells(world))

    @property
    def prefix_tokens(self) -> int:
        return self.passage + self.before

    @property
    def segment_tokens(self) -> int:
        """Of a cell after its passage; from the last one nothing is predicted, so it is not read."""
        return self.query + self.answer + self.after - 1

    def generator(self, world: int) -> Load:
        cells, P, S = self.cells(world), self.prefix_tokens, self.segment_tokens
        targets = cells * self.answer
        if not self.shared:
            return Load(cells * (P + S + 1), cells * (P + S + 1) * (P + S + 2) / 2, targets, cells)
        prefixes = self.prefixes(world)
        pairs = prefixes * P * (P + 1) / 2 + cells * (S * P + S * (S + 1) / 2)
        return Load(prefixes * P + cells * S, pairs, targets, cells)

    def chunk(self, world: int, cells: int) -> Load:
        """`cells` of them, side by side, as the two-pass ways read them."""
        whole = self.generator(world)
        if not whole.texts or cells >= whole.texts:
            return whole
        P, S = self.prefix_tokens, self.segment_tokens
        if not self.shared:
            share = cells / whole.texts
            return Load(whole.tokens * share, whole.pairs * share, cells * self.answer, cells)
        prefixes = min(cells, ceil(cells * self.prefixes(world) / whole.texts))
        pairs = prefixes * P * (P + 1) / 2 + cells * (S * P + S * (S + 1) / 2)
        return Load(prefixes * P + cells * S, pairs, cells * self.answer, cells)

    def retriever(self) -> Load:
        """Its own queries and passages, both sides padded to their longest; attention in both directions."""
        passages = self.batch * self.passages
        tokens = self.batch * self.query + passages * self.passage
        return Load(tokens, self.batch * self.query**2 + passages * self.passage**2, texts=self.batch + passages)

    def retriever_chunk(self, texts: int) -> Load:
        whole = self.retriever()
        share = min(1.0, texts / whole.texts) if texts else 1.0
        return Load(whole.tokens * share, whole.pairs * share, texts=whole.texts * share)
