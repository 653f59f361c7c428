"""Retrieval metrics are pytrec_eval's: equal where no scores tie, and never higher where some do.

Graded, zero and negative judgments; queries of which nothing is relevant; runs shorter than the corpus.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import pytrec_eval
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_rag.evaluation.metrics import retrieval_metrics_per_query
from ds_rag.evaluation.per_question import PerQuestion, trec_word, write_per_question

QUIET = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
DOCS = [f"d{n}" for n in range(14)]
NAMES = {f"recall@{k}": f"recall_{k}" for k in (1, 5, 10)} | {f"hit@{k}": f"success_{k}" for k in (1, 5, 10)}
NAMES |= {"mrr@10": "recip_rank", "ndcg@10": "ndcg_cut_10"}
GRADES = st.dictionaries(st.sampled_from(DOCS), st.integers(-1, 3), min_size=1, max_size=9)


def by_trec(run: dict[str, float], grades: dict[str, int]) -> dict[str, float]:
    """The same metrics of one query; reciprocal rank cut at 10, which trec_eval does not do by itself."""
    measures = {"recall.1,5,10", "success.1,5,10", "ndcg_cut.10", "recip_rank"}
    best = dict(sorted(run.items(), key=lambda pair: -pair[1])[:10])
    scored = [pytrec_eval.RelevanceEvaluator({"q": grades}, measures).evaluate({"q": r})["q"] for r in (run, best)]
    scored[0]["recip_rank"] = scored[1]["recip_rank"]
    return {ours: scored[0][theirs] for ours, theirs in NAMES.items()}


def by_us(run: dict[str, float], grades: dict[str, int]) -> dict[str, float]:
    found = retrieval_metrics_per_query([list(run)], [list(run.values())], [grades], corpus_size=len(DOCS))
    return {name: float(found[name][0]) for name in NAMES}


def run_of(draw: Any, values: list[float]) -> dict[str, float]:
    docs = draw(st.permutations(DOCS))
    return dict(zip(docs, values, strict=False))


@settings(max_examples=150, **QUIET)
@given(data=st.data(), grades=GRADES, depth=st.integers(11, len(DOCS)))
def test_equal_to_pytrec_eval_where_nothing_ties(data: Any, grades: dict[str, int], depth: int) -> None:
    """The run goes one passage deeper than it is judged: the last of what was retrieved is no hit by itself."""
    values = [float(n) for n in np.linspace(3, 1, depth)]
    run = run_of(data.draw, values)
    assert by_us(run, grades) == pytest.approx(by_trec(run, grades), abs=1e-9)


@settings(max_examples=100, **QUIET)
@given(data=st.data(), grades=GRADES, values=st.lists(st.integers(0, 2), min_size=len(DOCS), max_size=len(DOCS)))
def test_never_higher_than_the_worst_order_of_ties(data: Any, grades: dict[str, int], values: list[int]) -> None:
    run = run_of(data.draw, [float(v) for v in values])
    worst = {d: v - 1e-3 * max(0, grades.get(d, 0)) for d, v in run.items()}
    ours, theirs, untied = by_us(run, grades), by_trec(run, grades), {}
    for n, doc in enumerate(sorted(worst, key=lambda d: -worst[d])):
        untied[doc] = float(len(DOCS) - n)
    for name, value in by_trec(untied, grades).items():
        assert ours[name] == pytest.approx(value, abs=1e-9), name
        assert ours[name] <= theirs[name] + 1e-9, name


@settings(max_examples=40, **QUIET)
@given(data=st.data(), grades=GRADES, depth=st.integers(11, len(DOCS)))
def test_the_run_that_is_written_has_the_figures_that_stand_beside_it(
    data: Any, grades: dict[str, int], depth: int
) -> None:
    """trec_eval, on the .trec file that an evaluation leaves, gets the metrics of its table."""
    runs = [run_of(data.draw, [float(n) for n in np.linspace(top, 1, depth)]) for top in (3, 2)]
    ids = ["question 1", "q2"]  # a blank ends a field of such a file: it is spelled otherwise
    tables = [by_us(run, grades) for run in runs]
    metrics = {name: np.array([table[name] for table in tables]) for name in NAMES}
    retrieved, scores = [list(run) for run in runs], [list(run.values()) for run in runs]
    with TemporaryDirectory() as folder:
        _, file = write_per_question(PerQuestion(ids, [None, None], metrics, retrieved, scores), Path(folder) / "x")
        read = pytrec_eval.parse_run(file.open())
    assert set(read) == {trec_word(id_) for id_ in ids}
    for id_, table in zip(ids, tables, strict=True):
        assert table == pytest.approx(by_trec(read[trec_word(id_)], grades), abs=1e-9)
