"""Tokens and cells against the layout that the generator really reads."""

from __future__ import annotations

import numpy as np
import pytest

from ds_rag.commands.plan.workload import Workload
from ds_rag.data.batch import list_cells
from ds_rag.models.shared_prefix.layout import lay_out_shared

WORK = Workload(3, None, 2, query=5, passage=11, answer=4, before=0, after=0)


def test_tokens_are_the_layouts():
    """Six passages, three queries: every query on every passage."""
    passages = [np.full(11, n, np.int32) for n in range(6)]
    suffixes = [np.full(9, 50 + i, np.int32) for i in range(3)]
    pairs = [(p, s) for s in suffixes for p in passages]
    cells = lay_out_shared(list_cells([p for p, _ in pairs], [s for _, s in pairs], [4] * len(pairs)))
    load = WORK.generator(1)
    assert (load.tokens, load.texts, load.targets) == (cells.token_count, 18, 18 * 4)
    before, segment = 6 * 11 * 12 / 2, 8
    assert load.pairs == before + 18 * (segment * 11 + segment * (segment + 1) / 2)


def test_a_pool_of_the_world_reads_each_passage_on_one_rank():
    alone, together = Workload(candidates=8), Workload(candidates=8, world_pool=True)
    assert together.pool(64) == 64 * alone.pool(64) and together.generator(64) == alone.generator(64)
    every = Workload(4, None, world_pool=True)
    assert every.cells(8) == 4 * 32 and every.prefixes(8) == 4, "cells grow with the ranks, passages do not"


def test_few_candidates_of_many_passages():
    assert Workload(2, 1, passages=9).prefixes(1) == 2
    assert Workload(2, 50, passages=3).per_query(1) == 6


@pytest.mark.parametrize("shared", [True, False])
def test_chunks_add_up_to_at_least_the_whole(shared):
    work = Workload(4, None, 2, query=5, passage=11, answer=4, shared=shared)
    whole = work.generator(1)
    assert work.chunk(1, 1000) == whole
    for cells in (1, 2, 4, 8, 16):
        chunk = work.chunk(1, cells)
        assert chunk.tokens <= whole.tokens and chunk.tokens * -(-whole.texts // cells) >= whole.tokens
        assert chunk.targets == cells * work.answer


def test_plain_sequences_read_every_token():
    work = Workload(4, None, 2, query=5, passage=11, answer=4, before=0, after=0, shared=False)
    assert work.generator(1).tokens == 32 * 20


def test_the_retrievers_chunk_is_a_share():
    whole, half = WORK.retriever(), WORK.retriever_chunk(5)
    assert (whole.tokens, whole.texts) == (3 * 5 + 6 * 11, 9)
    assert half.tokens == pytest.approx(whole.tokens * 5 / 9) and WORK.retriever_chunk(0) == whole
