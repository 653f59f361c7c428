from __future__ import annotations

import numpy as np
import pytest

from ds_rag.drift import LEAST_SAMPLE, MOST_SAMPLE, TOLERATED, choose_rows, drift, estimate, sample_rows


def test_drift_by_hand():
    old = np.array([[1, 0], [1, 0], [2, 0], [1, 0], [0, 0]], np.float32)
    new = np.array([[3, 0], [0, 1], [-1, 0], [1, 1], [1, 0]], np.float32)
    np.testing.assert_allclose(drift(old, new), [0, 1, 2, 1 - np.sqrt(0.5), 1])


@pytest.mark.parametrize(
    ("count", "size"), [(0, 0), (10, 10), (2000, LEAST_SAMPLE), (10_000, 200), (10**6, MOST_SAMPLE)]
)
def test_a_sample_is_of_distinct_rows_and_the_same_for_a_seed(count, size):
    rows = sample_rows(count, [0, 3, 1])
    assert len(rows) == len(set(rows.tolist())) == size and (np.diff(rows) > 0).all()
    assert np.array_equal(rows, sample_rows(count, [0, 3, 1]))
    assert count <= 10 or not np.array_equal(rows, sample_rows(count, [0, 4, 1]))


def two_regions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors around two centres, of which the second's have moved; a sample and its drift."""
    rng = np.random.default_rng(0)
    region = rng.permutation(np.repeat([0, 1], 500))
    vectors = (np.eye(2, 8)[region] + 0.1 * rng.normal(size=(1000, 8))).astype(np.float32)
    sample = sample_rows(1000, [0])
    return vectors, region, sample


def test_passages_are_taken_to_drift_as_their_neighbours_of_the_sample_do():
    vectors, region, sample = two_regions()
    found = estimate(vectors, np.ones(1000), sample, np.where(region[sample] == 1, 0.2, 0.001))
    np.testing.assert_allclose(found, np.where(region == 1, 0.2, 0.001))


def test_what_has_waited_longer_has_drifted_more():
    vectors, _, sample = two_regions()
    ages = np.where(np.arange(1000) < 300, 10, 5)
    found = estimate(vectors, ages, sample, 0.01 * ages[sample])
    np.testing.assert_allclose(found, 0.01 * ages)


def test_the_share_is_filled_with_the_largest_estimates():
    estimates, sample = np.array([0.5, 0.1, 0.9, 0.3, 0.8, 0.0]), np.array([0, 1])
    assert choose_rows(estimates, sample, "0.5").tolist() == [2]  # 3 of 6, of which the sample is 2
    assert choose_rows(estimates, sample, "0.67").tolist() == [2, 3, 4]  # rounded up
    assert choose_rows(estimates, sample, "1").tolist() == [2, 3, 4, 5]
    assert choose_rows(estimates, sample, "0.1").tolist() == []


def test_auto_takes_all_that_moved_and_nothing_where_nothing_did():
    estimates, sample = np.array([0.5, 0.0, TOLERATED, 3 * TOLERATED]), np.array([0])
    assert choose_rows(estimates, sample, "auto").tolist() == [3]
    assert choose_rows(0 * estimates, sample, "auto").tolist() == []
