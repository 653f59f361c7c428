from __future__ import annotations

import numpy as np
import pytest

from ds_rag.index.partial_update import (
    LEAST_SAMPLE,
    MOST_SAMPLE,
    TOLERATED,
    choose_rows,
    drift,
    estimate,
    fit_map,
    move,
    sample_rows,
)


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


def turned(count: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors before and after a common rotation and stretch, and what befalls each by itself."""
    rng = np.random.default_rng(0)
    old = rng.normal(size=(count, 8)).astype(np.float32)
    old /= np.linalg.norm(old, axis=1, keepdims=True)
    new = old @ (np.eye(8) + 0.3 * rng.normal(size=(8, 8))) + noise * rng.normal(size=(count, 8))
    return old, (new / np.linalg.norm(new, axis=1, keepdims=True)).astype(np.float32)


def test_what_all_have_done_alike_is_made_good_and_what_is_left_is_known():
    old, new = turned(2000, noise=0.05)
    map_DD, left = fit_map(old[:200], new[:200])
    moved = move(old, map_DD, unit=True)
    assert moved.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1, atol=1e-6)
    true = drift(moved[200:], new[200:]).mean()  # of those the map has not seen
    assert true < 0.2 * drift(old, new).mean()
    assert left.mean() == pytest.approx(true, rel=0.2)


def test_left_out_means_left_out():
    """Against fits without each passage in turn; the fit's own residual would be smaller."""
    old, new = turned(20, noise=0.2)
    _, left = fit_map(old, new)
    ridge = 0.1
    for n in range(20):
        a, b = np.delete(old, n, 0).astype(np.float64), np.delete(new - old, n, 0).astype(np.float64)
        map_DD = np.linalg.solve(a.T @ a + ridge * np.eye(8), a.T @ b)
        assert left[n] == pytest.approx(drift((old + old @ map_DD)[n : n + 1], new[n : n + 1])[0], rel=1e-4)
    map_DD, _ = fit_map(old, new)
    assert drift(move(old, map_DD, False), new).mean() < 0.9 * left.mean()


def test_where_nothing_moved_nothing_is_moved():
    old, _ = turned(50)
    map_DD, left = fit_map(old, old)
    assert not map_DD.any() and left.max() < 1e-12
    assert np.array_equal(move(3 * old, map_DD, unit=False), 3 * old)


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
