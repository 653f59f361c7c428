"""Exact search against numpy over all passages; what is near to be wrong: ties, last bits, odd sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ds_rag.index.corpus_index import CorpusIndex, Part, build_part, longest
from ds_rag.index.exact import MISS, WIDEST, error_bound, pair_scores, search_flat
from ds_rag.index.faiss_index import build_index, build_vector_index, search


def make(count: int, dimension: int, distinct: int | None = None, seed: int = 0) -> np.ndarray:
    """Unit vectors; of `distinct` values only, so that many tie."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(distinct or count, dimension)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x[rng.integers(len(x), size=count)] if distinct else x


def by_hand(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Every pair scored alone, sorted by (score descending, number ascending)."""
    scores = np.array([[pair_scores(q[None], v[None])[0] for v in vectors] for q in queries], np.float32)
    order = np.array([sorted(range(len(vectors)), key=lambda n: (-row[n], n))[:k] for row in scores])
    return np.take_along_axis(scores, order, 1), order


def same(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> bool:
    """To the last bit."""
    return a[0].dtype == b[0].dtype == np.float32 and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dimension", [1, 2, 3, 48, 95, 384, 1000])
def test_a_pairs_score_is_the_same_in_any_block_and_nearly_rounds_the_true_one(dimension):
    left, right = make(200, dimension, seed=1) * 3, make(200, dimension, seed=2)
    whole = pair_scores(left, right)
    alone = np.concatenate([pair_scores(a[None], b[None]) for a, b in zip(left, right, strict=True)])
    strided = pair_scores(np.repeat(left, 2, 0)[::2], np.asfortranarray(right))
    assert whole.dtype == np.float32
    assert np.array_equal(whole, alone) and np.array_equal(whole, strided)
    assert np.array_equal(whole[7:], pair_scores(left[7:], right[7:]))
    true = np.array([np.longdouble(a) @ np.longdouble(b) for a, b in zip(left, right, strict=True)], np.longdouble)
    assert (np.abs(whole - true) <= np.spacing(np.abs(whole)) / 2 * (1 + 1e-6) + 1e-15).all()


def test_blas_is_not_that_kernel():
    """Or nothing here would be needed."""
    left, right = make(40, 384, seed=1), make(500, 384, seed=2)
    canonical = pair_scores(np.repeat(left, 500, 0), np.tile(right, (40, 1))).reshape(40, 500)
    index = build_index(right, "Flat")
    scores, numbers = search(index, left, 500)
    assert not np.array_equal(scores, np.take_along_axis(canonical, numbers, 1))
    assert (np.abs(scores - np.take_along_axis(canonical, numbers, 1)) <= error_bound(384, np.ones(1))).all()


@pytest.mark.parametrize("distinct", [None, 40, 3])
@pytest.mark.parametrize("queries", [1, 19, 60])  # the last by matrices
def test_search_is_that_by_hand(distinct, queries):
    vectors, asked = make(301, 32, distinct), make(queries, 32, seed=3)
    for k in (1, 10, 101, 301):
        assert same(Part(build_vector_index(vectors, "Flat")).search(asked, k), by_hand(vectors, asked, k))


def cut(count: int, shards: int) -> list[np.ndarray]:
    """Numbers of each, of odd sizes and in no order; one of four is empty."""
    numbers = np.random.default_rng(5).permutation(count)
    return [*np.array_split(numbers, shards - 1), numbers[:0]] if shards == 4 else np.array_split(numbers, shards)


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("distinct", [None, 97, 5, 1])
def test_shards_find_the_same_as_the_whole(shards, distinct):
    vectors = make(2501, 48, distinct)
    whole = CorpusIndex([Part(build_vector_index(vectors, "Flat"))], 2501)
    parts = [build_part(vectors[n], "Flat", n) for n in cut(2501, shards)]
    assert sum(p is None for p in parts) == (shards == 4)
    sharded = CorpusIndex([p for p in parts if p], 2501)
    for queries in (1, 21):
        asked = np.concatenate([vectors[:queries], make(queries, 48, seed=4)])
        for k in (1, 16, 101, 600):
            assert same(whole.search(asked, k), sharded.search(asked, k))


def test_faiss_alone_would_not():
    """Its ties are in no order, and its bits follow the shapes: the equality above is earned."""
    vectors = make(2501, 48, 97)
    numbers = cut(2501, 2)
    asked = make(25, 48, seed=4)
    found = [search(build_index(vectors[n], "Flat"), asked, 101) for n in numbers]
    scores = np.concatenate([s for s, _ in found], 1)
    of_parts = np.concatenate([n[i] for n, (_, i) in zip(numbers, found, strict=True)], 1)
    order = np.lexsort((of_parts, -scores), axis=1)[:, :101]
    whole = search(build_index(vectors, "Flat"), asked, 101)
    assert not np.array_equal(np.take_along_axis(of_parts, order, 1), whole[1])


def noisy(vectors: np.ndarray, size: float) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    """A search whose scores are off by up to `size` times the bound, each by as much as hurts: +-1 at random."""
    rng = np.random.default_rng(0)

    def near(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
        bound = error_bound(vectors.shape[1], np.linalg.norm(queries, axis=1)) * size
        scores = (exact + bound[:, None] * rng.choice([-0.999, 0.999], exact.shape)).astype(np.float32)
        order = np.argsort(-scores, axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), order

    return near


@pytest.mark.parametrize("near_ties", [1e-7, 3e-6, 1e-4])
def test_any_error_within_the_bound_is_made_good(near_ties):
    """Thousands of passages closer to each other than the errors of the search that proposes candidates."""
    base, rng = make(1, 64)[0], np.random.default_rng(1)
    vectors = (base + near_ties * rng.normal(size=(1500, 64))).astype(np.float32)
    asked, norm = make(3, 64, seed=2), longest(vectors)
    expected = by_hand(vectors, asked, 20)
    assert same(search_flat(vectors, asked, 20, noisy(vectors, 1.0), norm), expected)
    assert same(search_flat(vectors, asked, 20, noisy(vectors, -1.0), norm), expected)


def test_an_error_beyond_the_bound_would_show():
    vectors = make(3000, 64)
    asked = make(3, 64, seed=2)
    found = search_flat(vectors, asked, 20, noisy(vectors, 5e4), longest(vectors))
    assert not same(found, by_hand(vectors, asked, 20))


def test_where_all_are_equal_the_first_numbers_are_found():
    vectors = np.ones((WIDEST + 500, 8), np.float32)
    numbers = np.arange(len(vectors))[::-1].copy()
    scores, found = build_part(vectors, "Flat", numbers).search(vectors[:2], 30)
    assert (scores == 8).all() and found.tolist() == [list(range(30))] * 2


def test_what_is_no_number_is_not_found():
    vectors = make(50, 8)
    vectors[3] = np.nan
    part = Part(build_vector_index(vectors, "Flat"))
    asked = np.stack([vectors[0], np.full(8, np.nan, np.float32)])
    scores, numbers = part.search(asked, 60)
    assert sorted(numbers[0, :49].tolist()) == [n for n in range(50) if n != 3]
    assert (numbers[0, 49:] == -1).all() and (scores[0, 49:] == MISS).all()
    assert (numbers[1] == -1).all() and (scores[1] == MISS).all()


def test_no_queries_and_k_zero():
    part = Part(build_vector_index(make(50, 8), "Flat"))
    assert part.search(np.zeros((0, 8), np.float32), 5)[1].shape == (0, 5)
    assert part.search(make(2, 8), 0)[1].shape == (2, 0)


@pytest.mark.parametrize("factory", ["hnsw", "ivf", "IVF8,Flat"])
def test_an_approximate_index_in_shards_finds_about_as_much(factory):
    vectors, asked = make(3000, 48), make(100, 48, seed=7)
    exact = Part(build_vector_index(vectors, "Flat")).search(asked, 10)[1]

    def recall(index: CorpusIndex) -> float:
        found = index.search(asked, 10)
        assert (np.diff(found[0], axis=1) <= 0).all()
        return float(
            np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found[1].tolist(), exact.tolist(), strict=True)])
        )

    whole = CorpusIndex([build_part(vectors, factory)], 3000)
    shards = CorpusIndex([build_part(vectors[n], factory, n) for n in cut(3000, 3)], 3000)
    assert recall(shards) > recall(whole) - 0.1
