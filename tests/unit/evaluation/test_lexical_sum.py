"""Rankings by inner product and BM25 summed, against a loop over all passages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small import small_retriever
from test_evaluator import Chosen, numbers

from ds_rag.config import EvaluationConfig
from ds_rag.data.dataset import Example, RagData
from ds_rag.data.token_tables import EvalTokens
from ds_rag.evaluation import lexical_sum
from ds_rag.evaluation.audit_pool import AuditOptions, find
from ds_rag.evaluation.evaluator import Evaluator
from ds_rag.evaluation.lexical_sum import complete, weighted_words
from ds_rag.evaluation.signature import facts_of_settings
from ds_rag.index.corpus_index import CorpusIndex, build_part
from ds_rag.index.lexical import LexicalIndex
from ds_rag.models.retriever import RetrieverSettings
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

N, D, Q, TEMPERATURE, WEIGHT = 40, 6, 5, 0.5, 4.0
rng = np.random.default_rng(0)
TEXTS = [" ".join(rng.choice([f"w{n}" for n in range(30)], size=int(rng.integers(3, 12)))) for _ in range(N)]
QUERIES = [*(f"w{n} w{n + 7} w{n + 9}" for n in range(Q - 1)), "nothing known"]
VECTORS, ASKED = rng.normal(size=(N, D)).astype(np.float32), rng.normal(size=(Q, D)).astype(np.float32)
ROWS = [Example(query, (), (n,), ()) for n, query in enumerate(QUERIES)]


class Summing(Chosen):
    """`Chosen` with a weight of BM25."""

    reads_words, lexical_weight = True, torch.tensor(WEIGHT)
    settings = RetrieverSettings(lexical_weight=WEIGHT)


def evaluator(**stage: Any) -> Evaluator:
    data = RagData(TEXTS, [f"p{n}" for n in range(N)], N, [], ROWS)
    tokens = EvalTokens(numbers(N), numbers(Q), numbers(N), numbers(Q))
    config = EvaluationConfig(**{"per_device_eval_batch_size": 4, "lexical_lines": False} | stage)
    return Evaluator(Summing(ASKED, VECTORS), None, None, data, tokens, config)


def by_loop(query: int) -> list[float]:
    """s + temperature w BM25 / its deviation, of every passage."""
    words = LexicalIndex(TEXTS).scores(QUERIES[query]).astype(np.float64)
    deviation = words.std() or 1.0
    return [float(ASKED[query] @ VECTORS[n]) + TEMPERATURE * WEIGHT * float(words[n]) / deviation for n in range(N)]


def test_evaluation_ranks_as_a_loop_over_all_passages_does():
    found = evaluator().run().ranked
    assert found is not None and found.temperature == TEMPERATURE
    differ = 0
    for q in range(Q):
        wanted = by_loop(q)
        order = sorted(range(N), key=lambda n: (-wanted[n], n))
        assert found.numbers_QK[q].tolist() == order
        np.testing.assert_allclose(found.scores_QK[q], [wanted[n] for n in order], rtol=1e-5)
        differ += order[0] != int((VECTORS @ ASKED[q]).argmax())
        log_prior = np.array(found.question(q, 0, 4).log_prior)
        best = np.array([wanted[n] for n in order[:4]]) / TEMPERATURE
        np.testing.assert_allclose(log_prior, best - np.log(np.exp(best).sum()), rtol=1e-4)
    assert 0 < differ < Q, "words change some first passages, not all"


def test_of_a_large_corpus_the_first_of_both_sides_are_summed(monkeypatch):
    monkeypatch.setattr(lexical_sum, "DEPTH", 3)
    monkeypatch.setattr("ds_rag.evaluation.evaluator.DEPTH", 3)
    found = evaluator(top_k=3).run().ranked
    short = 0
    for q in range(Q):
        wanted, words = by_loop(q), LexicalIndex(TEXTS).search([QUERIES[q]], 3)[1][0].tolist()
        near = np.argsort(-(VECTORS @ ASKED[q]), kind="stable")[:3].tolist()
        best = sorted({*near, *words}, key=lambda n: (-wanted[n], n))[:3]
        assert found.numbers_QK[q].tolist() == best
        short += set(best) != set(near)
    assert short, "BM25 has found some that the index had not"


def test_shards_score_given_passages_as_a_search_does():
    order = rng.permutation(N)
    parts = [build_part(VECTORS[part], "Flat", part) for part in (order[:15], order[15:])]
    shards, merged = CorpusIndex(parts, N), CorpusIndex([build_part(VECTORS, "Flat")], N)
    scores, places = merged.search(ASKED, N)
    asked = np.where(places % 7 == 0, -1, places)
    for index in (shards, merged):
        found = index.score(ASKED, asked)
        assert np.array_equal(found[asked >= 0], scores[asked >= 0]) and np.isnan(found[asked < 0]).all()


def test_what_an_approximate_index_has_not_found_has_its_least_score():
    near = np.array([[0.9, 0.5, 0.0]], np.float32), np.array([[4, 2, -1]])
    found = complete(np.full((1, 4), np.nan, np.float32), np.array([[2, 4, 7, -1]]), near)
    assert found[0, :3].tolist() == pytest.approx([0.5, 0.9, 0.5])
    part = build_part(np.tile(VECTORS, (10, 1)), "hnsw")
    assert np.isnan(CorpusIndex([part], 10 * N).score(ASKED, np.zeros((Q, 1), np.int64))).all()


def test_bm25_is_not_added_twice():
    with pytest.raises(UserError, match="--hybrid bm25 and a retriever whose scores have BM25") as caught:
        evaluator(hybrid="bm25")
    assert "--lexical_prior 0" in str(caught.value)
    work = evaluator(lexical_lines=True)
    result = work.run()
    assert set(work.lexical_lines(result)) == {"bm25"}


def test_the_signature_names_it():
    said = [
        facts_of_settings(EvaluationConfig(), RetrieverSettings(lexical_weight=w), None)["similarity"]
        for w in (None, 2.0)
    ]
    assert said == ["cosine", "cosine + bm25 by its weight in the retriever"]


def test_an_audit_reads_the_sum():
    """`retriever` in an audit is the whole of the prior: candidates, their order and their scores."""
    retriever = small_retriever(lexical_weight=WEIGHT)
    words = weighted_words(retriever, TEXTS)
    data = RagData(TEXTS, [f"p{n}" for n in range(N)], N, [], ROWS)
    silent = Console(speaks=False)
    found = {}
    for source in ("index", "bm25"):
        wanted = AuditOptions(6, source, True, 8, "Flat")
        numbers_QW, scores_QW = find(retriever, data, range(Q), wanted, silent)
        with torch.no_grad():
            q_QD = retriever.embed(retriever.tokens(QUERIES, "query"), "query").double().numpy()
            p_ND = retriever.embed(retriever.tokens(TEXTS, "passage"), "passage").double().numpy()
        sums_QN = q_QD @ p_ND.T + np.array([words(query) for query in QUERIES])
        for q in range(Q):
            here = numbers_QW[q] >= 0
            np.testing.assert_allclose(scores_QW[q][here], sums_QN[q][numbers_QW[q][here]], atol=1e-6)
            if source == "index":
                assert numbers_QW[q, :6].tolist() == np.argsort(-sums_QN[q], kind="stable")[:6].tolist()
        found[source] = numbers_QW
    assert words.weight == pytest.approx(0.3 * WEIGHT) and not np.array_equal(found["index"], found["bm25"])
