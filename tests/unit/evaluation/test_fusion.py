"""Two rankings fused, against the rule written out."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from ds_rag.evaluation.fusion import fuse
from ds_rag.index.exact import MISS


def found(*rows: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Passage number -> score of each query, best first."""
    ordered = [sorted(row.items(), key=lambda pair: (-pair[1], pair[0])) for row in rows]
    return (
        np.array([[score for _, score in row] for row in ordered], np.float32),
        np.array([[number for number, _ in row] for row in ordered], np.int64),
    )


def by_hand(vectors: dict[int, float], words: dict[int, float]) -> dict[int, float]:
    total = dict.fromkeys(vectors | words, 0.0)
    for side in (vectors, words):
        mean, spread = statistics.fmean(side.values()), statistics.pstdev(side.values())
        for number in total:
            total[number] += (side.get(number, min(side.values())) - mean) / spread
    return total


def test_the_sum_of_standardised_scores():
    rng = np.random.default_rng(0)
    for _ in range(20):
        vectors = dict(zip(rng.permutation(30)[:9].tolist(), rng.normal(size=9).tolist(), strict=True))
        words = dict(zip(rng.permutation(30)[:12].tolist(), rng.gamma(2, 5, size=12).tolist(), strict=True))
        scores, numbers = fuse(found(vectors), found(words), 25)
        wanted = by_hand(vectors, words)
        order = sorted(wanted, key=lambda n: (-wanted[n], n))  # the last of both sides tie
        assert scores.dtype == np.float32 and numbers[0].tolist() == order
        np.testing.assert_allclose(scores[0], [wanted[n] for n in order], rtol=1e-4, atol=1e-5)
        shorter = fuse(found(vectors), found(words), 5)
        assert np.array_equal(shorter[1], numbers[:, :5]) and np.array_equal(shorter[0], scores[:, :5])


def test_each_side_can_decide_and_scale_does_not_matter():
    vectors, words = {0: 0.9, 1: 0.89, 2: 0.1}, {0: 1.0, 1: 20.0, 2: 1.0}
    assert fuse(found(vectors), found(words), 3)[1][0, 0] == 1  # words are sure, vectors are not
    assert fuse(found(vectors), found({0: 1.01, 1: 1.0, 2: 0.9}), 3)[1][0, 0] == 0
    larger = {n: 1000 * s + 7 for n, s in words.items()}
    np.testing.assert_allclose(
        fuse(found(vectors), found(larger), 3)[0], fuse(found(vectors), found(words), 3)[0], rtol=1e-5
    )


def test_a_query_of_unknown_words_is_ranked_by_vectors_alone():
    _, numbers = fuse(found({5: 0.4, 2: 0.3, 9: 0.1}), found({0: 0.0, 1: 0.0, 2: 0.0}), 5)
    assert numbers[0].tolist()[:2] == [5, 2]
    assert numbers[0].tolist()[2:] == [0, 1, 9]  # those that the vectors have not found, and their last: a tie


def test_misses_are_no_passages():
    vectors = np.array([[0.5, MISS, MISS], [0.5, 0.4, 0.1]], np.float32), np.array([[3, -1, -1], [3, 4, 5]])
    words = found({3: 2.0, 4: 1.0, 6: 0.0}, {3: 2.0, 4: 1.0, 6: 0.0})
    scores, numbers = fuse(vectors, words, 9)
    assert numbers.tolist() == [[3, 4, 6, -1], [3, 4, 5, 6]]
    assert scores[0, 3] == MISS and np.isfinite(scores).all()
    nothing = np.full((1, 2), MISS, np.float32), np.full((1, 2), -1)
    assert fuse(nothing, nothing, 4)[1].shape == (1, 0)


@pytest.mark.parametrize("depth", [1, 4])
def test_no_query(depth):
    empty = np.zeros((0, 4), np.float32), np.zeros((0, 4), np.int64)
    assert fuse(empty, empty, depth)[0].shape[0] == 0
