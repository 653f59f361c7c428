"""The scores of an audit: two ranks give what one gives."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from ranks import run_ranks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))  # for small.py, on the ranks too

from small import small_generator, small_retriever

from ds_rag.config import DataConfig
from ds_rag.data.almanac import make_world
from ds_rag.data.dataset import build_table
from ds_rag.data.prompt import Prompt
from ds_rag.evaluation.audit_pool import AuditOptions, collect
from ds_rag.evaluation.audit_scores import AuditScores
from ds_rag.evaluation.cached_reader import CachedReader
from ds_rag.runtime.console import Console


def scores() -> AuditScores:
    world = make_world(0)
    data = build_table(world.corpus[:40], [], world.evaluation[:5])
    generator = small_generator(seed=1)
    reader = CachedReader(generator, Prompt(generator.tokenizer, max_length=generator.max_length), DataConfig())
    wanted = AuditOptions(K=4, source="index", labelled=True, batch=8, index_factory="Flat")
    return collect(small_retriever(seed=2), reader, data, range(5), wanted, Console(speaks=False))[0]


def test_two_ranks_audit_as_one_does():
    alone = scores()
    for other in run_ranks(scores, 2):
        assert np.array_equal(other.there_QW, alone.there_QW) and np.array_equal(other.gold_QW, alone.gold_QW)
        for name in ("prior_QW", "answer_QW", "nothing_Q"):
            np.testing.assert_allclose(getattr(other, name), getattr(alone, name), rtol=1e-4, atol=1e-5)
    assert alone.gold_QW.any(axis=1).all() and len(np.unique(alone.answer_QW)) > 10
