"""Candidates from an index that only rank 0 has: one table on every rank, that of one process."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ranks import run_ranks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))


def table(words: bool = False) -> tuple[np.ndarray, dict[str, float], list[list[int]]]:
    """The table after a refresh, its figures, and the first passages of the micro-batches of a step. words: the table
    also has what BM25 finds."""
    from small import small_parts

    from ds_rag.index.corpus_index import CorpusIndex, build_part
    from ds_rag.index.encode import encode
    from ds_rag.run.index_candidates import Candidates
    from ds_rag.run.word_candidates import passages_by_words
    from ds_rag.runtime import collectives
    from ds_rag.runtime.console import Console

    parts = small_parts(candidates_from="index", pool="world")
    by_words = partial(passages_by_words, parts.data, Console(speaks=False)) if words else None
    parts.candidates = Candidates(parts.loader, 3, parts.data.corpus_size, 4, words=by_words)
    vectors = encode(parts.retriever, parts.eval_tokens.passages, "passage", 4)
    part = build_part(vectors, "Flat")
    index = CorpusIndex([part] if part and collectives.rank() == 0 else [], len(vectors))
    figures = parts.candidates.refresh(0, index.search, parts.retriever)
    found = parts.loader.found_RK
    assert found is not None
    return found, figures, [batch.rows for batch in parts.loader.micro_batches(0)]


@pytest.mark.parametrize("words", [False, True])
def test_ranks_see_one_table(words: bool) -> None:
    ((alone, figures, _),) = run_ranks(table, 1, words)
    two = run_ranks(table, 2, words)
    assert alone.shape[1] == 3
    for found, same, _ in two:
        assert np.array_equal(found, alone) and same == figures
    assert two[0][2] == two[1][2], "a pool of the world is one batch"
    assert set(figures) == {"distinct", "retrieved_positive"} and figures["distinct"] > 3
