"""Where a step's rows are: every row once an epoch, in an order that only the seed and the global batch decide."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_rag.data.dataset import Example, TokenTable
from ds_rag.data.loader import BatchOptions, Loader, TrainTokens

QUIET = {"deadline": None, "derandomize": True, "database": None}
ROWS, SEEDS = st.integers(1, 60), st.integers(0, 3)
BATCHES = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))  # batch, accumulation, world


@cache
def made(rows: int) -> tuple[list[Example], TrainTokens]:
    """Rows of different lengths, which group them."""
    lengths = np.random.default_rng(rows).integers(1, 9, rows)
    table = TokenTable(np.arange(lengths.sum(), dtype=np.int32), np.cumsum(lengths))
    return [Example(f"q{n}", ("a",), (n,), ()) for n in range(rows)], TrainTokens(table, table)


def loader(rows: int, sizes: tuple[int, int, int], rank: int = 0, seed: int = 0, **options: bool) -> Loader:
    batch, accumulation, world = sizes
    return Loader(*made(rows), BatchOptions(batch, accumulation, rank, world, seed, 0, **options))


@settings(max_examples=150, **QUIET)
@given(rows=ROWS, sizes=BATCHES, seed=SEEDS, epochs=st.integers(1, 4))
def test_every_row_comes_once_an_epoch(rows, sizes, seed, epochs):
    of = loader(rows, sizes, seed=seed)
    steps = -(-rows * epochs // of.global_batch)
    stream = [row for step in range(steps) for row in of.rows_of(step)]
    for epoch in range(epochs):
        assert sorted(stream[epoch * rows :][:rows]) == list(range(rows)), epoch
    assert len(stream) == steps * of.global_batch, "every step is whole"
    seen = Counter(stream[: rows * epochs])
    assert set(seen.values()) == {epochs}


@settings(max_examples=150, **QUIET)
@given(rows=ROWS, sizes=BATCHES, seed=SEEDS, step=st.integers(0, 50))
def test_the_same_global_batch_has_the_same_rows_however_it_is_split(rows, sizes, seed, step):
    batch, accumulation, world = sizes
    whole = batch * accumulation * world
    wanted = loader(rows, (whole, 1, 1), seed=seed).rows_of(step)
    for split in ((batch, accumulation, world), (batch, world, accumulation), (batch, accumulation * world, 1)):
        ranks = [loader(rows, split, rank, seed) for rank in range(split[2])]
        assert all(of.rows_of(step) == wanted for of in ranks)
        micros = [[micro.rows for micro in of.micro_batches(step)] for of in ranks]
        joined = [row for m in range(split[1]) for of_rank in micros for row in of_rank[m]]
        assert joined == wanted, "micro-batch by micro-batch, rank by rank"


@settings(max_examples=60, **QUIET)
@given(rows=ROWS, sizes=BATCHES, step=st.integers(0, 50))
def test_a_pool_of_the_world_holds_the_rows_of_all_ranks(rows, sizes, step):
    plain = loader(rows, sizes).rows_of(step)
    for rank in range(sizes[2]):
        micros = loader(rows, sizes, rank, shared_pool=True).micro_batches(step)
        whole = [row for micro in micros for row in micro.rows]
        assert whole == plain if sizes[2] > 1 else sorted(whole) == sorted(plain)


@settings(max_examples=100, **QUIET)
@given(rows=ROWS, sizes=BATCHES, seed=SEEDS, steps=st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_any_step_is_reached_directly_and_in_any_order(rows, sizes, seed, steps):
    """What was asked before leaves no trace: a resumed run starts in the middle."""
    walked = loader(rows, sizes, seed=seed)
    for step in steps:
        assert walked.rows_of(step) == loader(rows, sizes, seed=seed).rows_of(step)
