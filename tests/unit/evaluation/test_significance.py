"""Intervals and tests of differences, against plain loops, scipy and simulations."""

from __future__ import annotations

import itertools
import random
from statistics import fmean

import numpy as np
import pytest

from ds_rag.evaluation.significance import (
    cluster_sums,
    drawn_means,
    effective_number,
    expanded_tail,
    holm,
    interval,
    intervals,
    randomisation_test,
    t_quantile,
)

# Differences of 14 questions in 5 documents and 2 that stand alone; the last has no value.
CLUSTERS = [*"aaaaaa", *"bbb", *"cc", "d", None, None, "e", "d"]
VALUES = np.array([1, 1, 1, 1, 0, 1, 0, -1, 0, 1, 0, 1, 0, 1, -1, np.nan])


def by_document(values: np.ndarray, clusters: list[str | None]) -> list[list[float]]:
    """The values of each document, in the order of first appearance: the plain form of `cluster_sums`."""
    found: dict[object, list[float]] = {}
    for n, (value, name) in enumerate(zip(values, clusters, strict=True)):
        if not np.isnan(value):
            found.setdefault(n if name is None else name, []).append(float(value))
    return list(found.values())


def sums_of(values: np.ndarray, clusters: list[str | None]) -> np.ndarray:
    return np.array([[sum(document)] for document in by_document(values, clusters)])


def test_sums_and_sizes_of_documents() -> None:
    values = np.array([[1.0, 0], [2, 0], [4, 1], [8, 0], [16, 0]])
    sums, sizes = cluster_sums(values, ["a", None, "a", None, "None"])
    assert sums.tolist() == [[16, 0], [5, 1], [2, 0], [8, 0]] and sizes.tolist() == [1, 2, 1, 1]  # None, a, alone
    empty, none = cluster_sums(np.zeros((0, 1)), [])
    assert empty.shape == (0, 1) and none.shape == (0,)
    sums, sizes = cluster_sums(values, None)
    assert sums.tolist() == values.tolist() and sizes.tolist() == [1] * 5
    assert effective_number(np.array([7.0, 7, 7])) == 3 and effective_number(np.array([8.0, 1, 1])) == 100 / 66
    assert effective_number(np.array([])) == 0


def test_the_interval_is_that_of_a_loop_over_drawn_documents() -> None:
    documents = by_document(VALUES, CLUSTERS)
    rng, means = random.Random(1), []
    for _ in range(20_000):
        drawn = list(itertools.chain(*(rng.choice(documents) for _ in documents)))
        means.append(sum(drawn) / len(drawn))
    tail = expanded_tail(0.1, effective_number(np.array([len(d) for d in documents])))
    low, high = interval(VALUES, CLUSTERS, draws=20_000, level=0.8)
    np.testing.assert_allclose((low, high), np.quantile(means, [tail, 1 - tail]), atol=0.02)
    alone = interval(VALUES, None, draws=20_000, level=0.8)
    assert (high - low) > 1.3 * (alone[1] - alone[0])  # by question it is another, and too narrow


def test_questions_that_are_right_together_are_worth_one() -> None:
    values = np.repeat([0.0, 1, 1, 0, 1, 0, 0, 1, 1, 0] * 3, 10)
    low, high = interval(values, np.repeat(np.arange(30), 10).tolist())
    assert (low, high) == pytest.approx(interval(values[::10], None), abs=1e-12)  # 30 questions
    alone = interval(values, None)
    assert high - low == pytest.approx((alone[1] - alone[0]) * 10**0.5, rel=0.15)


def test_an_interval_is_the_same_again_and_none_without_two_documents() -> None:
    values, names = np.arange(30.0) ** 2, [n // 3 for n in range(30)]
    assert interval(values, names, draws=500) == interval(values, names, draws=500)
    assert interval(values, names, draws=500) != interval(values, names, draws=500, seed=1)
    inner, outer = interval(values, names, draws=500, level=0.5), interval(values, names, draws=500)
    assert outer[0] < inner[0] < values.mean() < inner[1] < outer[1]
    assert np.isnan(interval(np.array([1.0, 0, 1]), ["a", "a", "a"])).all()
    assert np.isnan(interval(np.array([]), [])).all()
    pairs = np.stack([values, -values], axis=1)
    assert intervals(pairs, names, draws=500) == [outer, pytest.approx((-outer[1], -outer[0]))]


def test_the_order_of_rows_changes_nothing() -> None:
    values, names = np.random.default_rng(0).random(40), [f"d{n % 12}" for n in range(40)]
    assert interval(values[::-1], names[::-1]) == pytest.approx(interval(values, names), abs=1e-12)


def test_drawn_means_are_means_of_drawn_documents() -> None:
    """Of two documents of 1 and 3 questions there are three different draws."""
    means = drawn_means(np.array([[1.0], [0.0]]), np.array([1.0, 3.0]), 4000, seed=0)[:, 0]
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0, 0.25, 1]  # not 0.5: the statistic is the mean over questions
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.03)


def test_documents_that_are_alike_are_drawn_together() -> None:
    """The same distribution, faster: 40 documents of two kinds against 40 that differ by nothing that counts."""
    sums, sizes = np.array([[1.0, 2.0]] * 10 + [[0.0, 1.0]] * 30), np.ones(40)
    together = drawn_means(sums, sizes, 20_000, seed=0)
    apart = drawn_means(sums + np.linspace(0, 1e-9, 40)[:, None], sizes, 20_000, seed=0)
    np.testing.assert_allclose(together[:, 1], together[:, 0] + 1)
    np.testing.assert_allclose(together.mean(axis=0), [0.25, 1.25], atol=0.003)
    np.testing.assert_allclose(np.quantile(together, [0.02, 0.98], 0), np.quantile(apart, [0.02, 0.98], 0), atol=0.026)
    assert together.std() == pytest.approx(apart.std(), rel=0.02)


def test_students_t_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for free in (4, 7.66, 19, 38.8, 1040):
        for tail in (0.025, 0.05, 0.1):
            assert t_quantile(tail, free) == pytest.approx(stats.t.ppf(tail, free), rel=3e-3)
    assert expanded_tail(0.025, 1e9) == pytest.approx(0.025)
    narrow = stats.norm.cdf(stats.t.ppf(0.025, 19) * (20 / 19) ** 0.5)
    assert expanded_tail(0.025, 20) == pytest.approx(narrow, rel=1e-3) and narrow < 0.017


def test_exact_p_is_that_of_a_loop_over_all_signs_and_of_scipy() -> None:
    sums = sums_of(VALUES, CLUSTERS)[:, 0]
    assert sums.tolist() == [5, -1, 1, 1, 0, 1, -1]
    totals = [sum(s * x for s, x in zip(signs, sums, strict=True)) for signs in itertools.product((1, -1), repeat=7)]
    wanted = fmean(abs(total) >= 6 for total in totals)
    (p,) = randomisation_test(sums[:, None])
    assert p == wanted == 0.5  # the five ones must not sum to less than 1
    (by_question,) = randomisation_test(VALUES[~np.isnan(VALUES)][:, None])
    assert by_question == 2 * (1 + 10 + 45) / 2**10  # 8 questions to 2: at most two of ten signs are the other
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.permutation_test(
        (sums, np.zeros(7)), lambda a, b, axis: (a - b).sum(axis), permutation_type="samples", vectorized=True
    )
    assert p == pytest.approx(theirs.pvalue)


def test_drawn_p_is_near_scipys_exact_one() -> None:
    stats = pytest.importorskip("scipy.stats")
    sums = np.random.default_rng(3).normal(0.6, 1, (17, 1))
    theirs = stats.permutation_test(
        (sums[:, 0], np.zeros(17)),
        lambda a, b, axis: (a - b).sum(axis),
        permutation_type="samples",
        n_resamples=2**17,
        vectorized=True,
    )
    (p,) = randomisation_test(sums, draws=20_000)
    assert p == pytest.approx(theirs.pvalue, abs=0.01) and 0.02 < p < 0.5
    assert p != theirs.pvalue  # 17 documents: drawn


def test_p_by_document_is_not_p_by_question() -> None:
    """Two documents of 50 questions each, all for one system: by question sure, by document a coin thrown twice."""
    assert randomisation_test(np.array([[50.0], [50.0]])) == [0.5]
    assert randomisation_test(np.ones((100, 1)), draws=999) == [1 / 1000]


def test_p_of_several_columns_at_once() -> None:
    rng = np.random.default_rng(0)
    sums = np.concatenate([np.zeros((40, 1)), rng.normal(0.5, 1, (40, 2)), rng.normal(0, 1, (40, 1))], axis=1)
    sums[10:, 2] = 0  # this one is exact
    p = randomisation_test(sums)
    assert p[0] == 1 and p == [randomisation_test(sums[:, [n]])[0] for n in range(4)]
    assert p[1] < 0.05 < p[3] and p[2] * 2**10 == int(p[2] * 2**10)
    assert randomisation_test(-sums) == p == randomisation_test(sums * 0.1)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4]) == [0.4] and holm([]) == [] and holm([0.9, 0.8]) == [1, 1]
    assert holm([0.02, 0.02]) == [0.04, 0.04]
