"""How many tokens, and (query, key) pairs of attention, each model reads in one micro-batch on one rank.

Every text is assumed to have its maximum length. Symbols: B queries per rank, n passages per row, K candidates per
query, W ranks. The layout is that of models/shared_prefix/layout.py: each passage once for all queries that have it as
a candidate, then the segment of each cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

# Tokens of the default prompt in addition to passage, query and answer: those that are read once with the passage
# (before it, and between it and the query), and those of each cell (with the answer's end-of-sequence token).
PROMPT_BEFORE, PROMPT_AFTER = 6, 5


@dataclass(frozen=True)
class Load:
    """What one model reads and predicts in one forward pass over a micro-batch."""

    tokens: float
    pairs: float  # (query, key) pairs of one layer that are not masked
    targets: float = 0.0  # predicted tokens
    texts: float = 0.0  # sequences, or cells


@dataclass(frozen=True)
class Workload:
    """The sizes of a batch. query, passage, answer: maximum tokens of each text."""

    batch: int = 16  # B
    candidates: int | None = 8  # K; None: the full pool
    passages: int = 1  # n
    query: int = 64
    passage: int = 200
    answer: int = 64
    accumulation: int = 1
    world_pool: bool = False
    before: int = PROMPT_BEFORE
    after: int = PROMPT_AFTER
    shared: bool = True  # are prefixes shared?
    query_side: bool = False  # are the passages' vectors constants?

    def pool(self, world: int) -> int:
        """N: number of passages in the pool."""
        return self.batch * self.passages * (world if self.world_pool else 1)

    def per_query(self, world: int) -> int:
        """K, at most the size of the pool."""
        pool = self.pool(world)
        return pool if self.candidates is None else min(pool, self.candidates)

    def cells(self, world: int) -> int:
        """(query, passage) pairs that one rank's generator scores in a micro-batch.

        With `--pool world` there are W B K of them, and each rank scores those of its own passages, 1 / W of them.
        """
        return self.batch * self.per_query(world)

    def prefixes(self, world: int) -> int:
        """Distinct passages that one rank's generator reads: those of the rank, at most one for each cell."""
        return min(self.batch * self.passages, self.cells(world))

    @property
    def prefix_tokens(self) -> int:
        return self.passage + self.before

    @property
    def segment_tokens(self) -> int:
        """Tokens of a cell after its passage, without the last one: it is only predicted, not read."""
        return self.query + self.answer + self.after - 1

    def generator(self, world: int) -> Load:
        return self.load_of(self.cells(world), self.prefixes(world))

    def load_of(self, cells: int, prefixes: int) -> Load:
        """The generator's load for so many cells of so many distinct passages."""
        P, S = self.prefix_tokens, self.segment_tokens
        targets = cells * self.answer
        if not self.shared:
            return Load(cells * (P + S + 1), cells * (P + S + 1) * (P + S + 2) / 2, targets, cells)
        pairs = prefixes * P * (P + 1) / 2 + cells * (S * P + S * (S + 1) / 2)
        return Load(prefixes * P + cells * S, pairs, targets, cells)

    def chunk(self, world: int, cells: int) -> Load:
        """The load of one chunk of `cells` cells, sorted by passage, as with two passes."""
        full = self.generator(world)
        if not full.texts or cells >= full.texts:
            return full
        return self.load_of(cells, min(cells, ceil(cells * self.prefixes(world) / full.texts)))

    def retriever(self) -> Load:
        """The retriever's load: queries and passages of this rank, each padded to its maximum length; attention is not
        causal. Queries alone where the passages' vectors are constants."""
        passages = 0 if self.query_side else self.batch * self.passages
        tokens = self.batch * self.query + passages * self.passage
        return Load(tokens, self.batch * self.query**2 + passages * self.passage**2, texts=self.batch + passages)

    def retriever_chunk(self, texts: int) -> Load:
        """The load of one chunk of `texts` texts; 0: all."""
        full = self.retriever()
        part = min(1.0, texts / full.texts) if texts else 1.0
        return Load(full.tokens * part, full.pairs * part, texts=full.texts * part)
