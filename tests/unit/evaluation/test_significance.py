"""Intervals and tests of differences, against plain loops, scipy and simulations."""

from __future__ import annotations

import numpy as np
import pytest

from ds_rag.evaluation.significance import cluster_sums, interval

CLUSTERS = ["a"] * 6 + ["b"] * 3 + ["c", "c", "d", None, None]
VALUES = np.array([1, 1, 1, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, np.nan], dtype=float)


def test_a_question_without_a_value_is_left_out_and_one_without_a_document_stands_alone() -> None:
    sums, sizes = cluster_sums(np.array([1.0, 2, 4, np.nan, 8, 16]), ["a", None, "a", "b", None, "None"])
    assert sums.tolist() == [5, 2, 8, 16] and sizes.tolist() == [2, 1, 1, 1]
    sums, sizes = cluster_sums(np.array([1.0, np.nan, 4]), None)
    assert sums.tolist() == [1, 4] and sizes.tolist() == [1, 1]


def test_an_interval_is_the_same_again_and_none_without_two_documents() -> None:
    assert interval(VALUES, CLUSTERS, draws=500) == interval(VALUES, CLUSTERS, draws=500)
    assert interval(VALUES, CLUSTERS, draws=500) != interval(VALUES, CLUSTERS, draws=500, seed=1)
    assert np.isnan(interval(np.array([1.0, 0, 1]), ["a", "a", "a"])).all()
    assert np.isnan(interval(np.array([]), [])).all()
    low, high = interval(VALUES, CLUSTERS, draws=500, level=0.5)
    assert interval(VALUES, CLUSTERS, draws=500)[0] < low < high


def test_questions_that_go_together_make_it_wider() -> None:
    values = np.repeat([0.0, 1.0, 1, 0, 1, 0, 0, 1, 1, 0], 10)
    low, high = interval(values, np.repeat(np.arange(10), 10).tolist(), draws=2000)
    alone = interval(values, None, draws=2000)
    assert high - low == pytest.approx((alone[1] - alone[0]) * 10**0.5, rel=0.1)
