"""Building and searching: every name and factory string; the kernel by the number of queries and their dimension
(few, a mine's, many; narrow, wide); what a flat index, built or opened, holds of its vectors: no copy."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from ds_rag.index.faiss_index import build_index, check_factory, flat_vectors, least_vectors, open_index, search
from ds_rag.index.faiss_names import INDEXES, check_spelling, parts_of, spell
from ds_rag.runtime.errors import UserError


def unit_vectors(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, dimension)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def corpus() -> np.ndarray:
    return unit_vectors(2000, 48)  # 48 divides by PQ48's parts


@pytest.mark.parametrize("name", INDEXES)
def test_every_named_index_holds_all_vectors_and_finds_most_of_them(corpus, name):
    index = build_index(corpus, name)
    assert index.ntotal == len(corpus)
    scores, numbers = search(index, corpus[:100], 5)
    assert scores.shape == numbers.shape == (100, 5)
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    assert (numbers[:, 0] == np.arange(100)).mean() > 0.9, "a vector is its own nearest"


@pytest.mark.parametrize("name", ["flat", "Flat"])
def test_flat_is_the_exact_inner_product(corpus, name):
    vectors, queries = 3 * corpus[:300] * np.arange(1, 301)[:, None].astype(np.float32) ** 0.1, unit_vectors(20, 48, 1)
    scores, numbers = search(build_index(vectors, name), queries, 7)
    product = queries @ vectors.T
    assert np.array_equal(numbers, np.argsort(-product, axis=1)[:, :7])
    np.testing.assert_allclose(scores, -np.sort(-product, axis=1)[:, :7], rtol=1e-5)


def test_hnsw_recalls_most_of_what_flat_finds(corpus):
    queries = unit_vectors(100, 48, 2)
    exact, near = (search(build_index(corpus, name), queries, 10)[1] for name in ("flat", "hnsw"))
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), near.tolist(), strict=True)])
    assert recall > 0.6


@pytest.mark.parametrize("name", ["ivf", "ivfpq"])
def test_lists_grow_with_the_vectors_and_leave_enough_to_each(name):
    counts = [1, 38, 39, 300, 2000, 10_000, 100_000, 1_000_000]
    lists = [int(spell(name, count, 384)[0].split(",")[0].removeprefix("IVF")) for count in counts]
    assert lists == [1, 1, 1, 7, 51, 256, 1265, 4000]  # 39 vectors a list, then 4 sqrt(count)
    probes = [int(spell(name, count, 384)[1].removeprefix("nprobe=")) for count in counts]
    assert probes == [1, 1, 1, 7, 14, 32, 71, 126]  # 2 sqrt(lists)


def test_ivf_of_a_short_name_finds_most_and_as_many_as_are_asked_for(corpus):
    exact, near = (search(build_index(corpus, name), corpus[:100], 100)[1] for name in ("flat", "ivf"))
    assert (near >= 0).all()
    assert np.mean([len(set(a[:10]) & set(b[:10])) for a, b in zip(exact.tolist(), near.tolist(), strict=True)]) > 4
    few = corpus[:30]  # one list: exact
    assert np.array_equal(*(search(build_index(few, name), corpus[:9], 30)[1] for name in ("flat", "ivf")))


def test_search_parameters_of_a_short_name_are_kept_in_the_file(corpus):
    read = {n: faiss.deserialize_index(faiss.serialize_index(build_index(corpus, n))) for n in ("hnsw", "ivf")}
    assert read["hnsw"].hnsw.efSearch == 64
    assert (read["ivf"].nlist, read["ivf"].nprobe) == (51, 14)


def test_a_short_name_does_not_train_what_no_search_uses_and_finds_the_same(corpus):
    """Polysemous training takes half a minute; it only renames codes."""
    short = build_index(corpus, "ivfpq")
    assert not short.do_polysemous_training
    assert faiss.index_factory(48, "IVF4,PQ2").do_polysemous_training, "FAISS does it by itself: the case shows nothing"
    plain, renamed = build_index(corpus, "IVF4,PQ2np"), build_index(corpus, "IVF4,PQ2")
    for a, b in zip(search(plain, corpus[:50], 5), search(renamed, corpus[:50], 5), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_factory_string_is_faiss_own_with_its_parameters(corpus):
    assert spell("IVF1024,PQ48", 100, 48) == ("IVF1024,PQ48", "")
    index = build_index(corpus, "IVF16,Flat")
    assert (index.nlist, index.nprobe) == (16, 1)
    assert build_index(corpus, "HNSW32").hnsw.efSearch == 16


@pytest.mark.parametrize(
    ("factory", "kind"),
    [("IVF4,SQ8", "IndexIVFScalarQuantizer"), ("IVF4,PQ2", "IndexIVFPQ"), ("PCA8,Flat", "IndexPreTransform")],
)
def test_any_factory_string_works(corpus, factory, kind):
    index = build_index(corpus[:300], factory)
    assert index.ntotal == 300 and type(index).__name__ == kind


@pytest.mark.parametrize("factory", ["flatt", "IVF1024,PQ7", "IVF1024,Flat", "PQ7", ""])
def test_what_faiss_refuses_is_a_users_mistake(factory):
    with pytest.raises(UserError, match="--index_factory") as caught:
        build_index(unit_vectors(100, 48), factory)
    assert "flat | hnsw" in str(caught.value) and "100 vectors of 48" in str(caught.value)


def test_k_is_cut_to_the_index_and_a_miss_is_minus_one():
    vectors = unit_vectors(40, 8)
    assert search(build_index(vectors, "flat"), vectors[:3], 100)[1].shape == (3, 40)
    index = build_index(vectors, "IVF8,Flat")
    _, numbers = search(index, vectors[:3].astype(np.float64), 40)
    assert (numbers[:, -1] == -1).all() and (numbers[:, 0] == [0, 1, 2]).all()


def test_a_factory_is_checked_before_there_are_vectors():
    for name in INDEXES:
        check_factory(name, 96)
    for factory, dimension in (("flatt", 48), ("PQ48", 50)):  # 50 has no 48 equal parts
        with pytest.raises(UserError, match="--index_factory") as caught:
            check_factory(factory, dimension)
        assert f"vectors of {dimension}" in str(caught.value)


# Of common encoders, then odd ones and primes.
DIMENSIONS = [64, 96, 128, 192, 256, 300, 312, 320, 384, 512, 640, 768, 896, 1000, 1024, 1280, 1536, 2048, 2560, 3072]
DIMENSIONS += [3584, 4096, 1, 2, 17, 31, 50, 67, 257, 1021]


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_codes_fit_vectors_of_any_dimension(dimension):
    """As they are built: the parts divide it, or zeros are added; about 48 bytes a vector, and its own nearest."""
    parts, length = parts_of(dimension)
    assert length % parts == 0 and 0 <= length - dimension < 48
    assert 32 <= parts <= 64 if dimension >= 32 else parts == dimension
    check_factory("ivfpq", dimension, 300)
    vectors = unit_vectors(256, dimension)
    index = build_index(vectors, "ivfpq")
    inner = faiss.downcast_index(faiss.extract_index_ivf(index))
    assert (index.d, index.ntotal, inner.pq.M) == (dimension, 256, parts)
    assert inner.cp.max_points_per_centroid == 64
    if dimension >= 64:
        assert (search(index, vectors[:50], 1)[1][:, 0] == np.arange(50)).mean() > 0.9


def test_where_48_bytes_divide_the_dimension_they_stay():
    assert [parts_of(d) for d in (48, 96, 384, 768, 1536)] == [(48, d) for d in (48, 96, 384, 768, 1536)]
    assert parts_of(1024) == (64, 1024) and parts_of(67) == (48, 96)


def test_zeros_that_lengthen_vectors_change_no_score():
    vectors = unit_vectors(300, 67)
    plain, longer = (build_index(vectors, name) for name in ("IVF1,Flat", "Pad96,IVF1,Flat"))
    for a, b in zip(search(plain, vectors[:9], 20), search(longer, vectors[:9], 20), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 66, 255, 256])
def test_few_vectors_stay_whole_rather_than_be_refused(count):
    vectors = unit_vectors(count, 64)
    check_factory("ivfpq", 64, count)
    index = build_index(vectors, "ivfpq")
    assert index.ntotal == count and hasattr(faiss.downcast_index(index), "pq") == (count >= 256)


BOMBS = ["HNSW1000000000", "HNSW0,Flat", "IVF1000000000,Flat", "IVF2097152_HNSW32,Flat", "PCA999999999,Flat"]
BOMBS += ["Flat" * 99, "PQ8x24", "RQ1000000x8", "IMI2x20,Flat", "NSG100000", "OPQ16_99999999,PQ16", "Pad9999999,Flat"]
BOMBS += ["IVF16,PQ" + "9" * 30]
IN_USE = ["Flat", "HNSW32", "HNSW64,Flat", "IVF1048576_HNSW32,Flat", "OPQ16_64,IVF4096,PQ16x8", "PCAR64,IVF256,SQ8"]
IN_USE += ["IVF65536(PQ32x8,RFlat),PQ48x4fsr,Refine(SQ8)", "RQ8x8", "IMI2x9,PQ8+16", "L2norm,Flat", "Pad128,HNSW16"]
LEAST = [("IVF100,Flat", 100), ("IVF4,PQ2", 256), ("PCA8,IVF9,Flat", 9), ("Flat", 0)]


@pytest.mark.parametrize("factory", BOMBS)
def test_absurd_parameters_are_refused_before_faiss_sees_them(factory, monkeypatch):
    monkeypatch.setattr(faiss, "index_factory", lambda *args: pytest.fail("FAISS was asked"))
    for refuse in (check_spelling, lambda f: check_factory(f, 48), lambda f: build_index(unit_vectors(9, 48), f)):
        with pytest.raises(UserError, match="--index_factory") as caught:
            refuse(factory)
        assert caught.value.expected


@pytest.mark.parametrize("factory", IN_USE)
def test_parameters_that_are_in_use_pass(factory):
    check_spelling(factory)


@pytest.mark.parametrize(("factory", "least"), LEAST)
def test_too_few_vectors_show_before_they_are_encoded(factory, least):
    assert least_vectors(faiss.index_factory(48, factory, faiss.METRIC_INNER_PRODUCT)) == least
    check_factory(factory, 48, max(1, least))
    if least:
        with pytest.raises(UserError, match="too few passages") as caught:
            check_factory(factory, 48, least - 1)
        assert f"{least:,} or more" in str(caught.value)


@pytest.mark.parametrize(("queries", "dimension"), [(256, 384), (6, 384), (3, 768), (60, 32), (1, 384)])
def test_few_queries_are_searched_by_matrix_products_too(monkeypatch, queries, dimension):
    """Told by the last bits, which differ; FAISS by itself takes ten times as long below 128,000 numbers."""
    vectors, asked = unit_vectors(700, dimension), unit_vectors(queries, dimension, 1)
    limits, index = faiss.cvar, faiss.IndexFlatIP(dimension)
    index.add(vectors)

    def by(threshold: int) -> np.ndarray:
        limits.distance_compute_blas_threshold = threshold
        return index.search(asked, 700)[0]

    matrices, one_by_one = by(1), by(1 << 30)
    assert not np.array_equal(matrices, one_by_one), "the case shows nothing"
    limits.distance_compute_blas_threshold = 128_000
    assert np.array_equal(search(index, asked, 700)[0], matrices if queries > 1 else one_by_one)


@pytest.mark.parametrize("kind", ["memory", "mapped"])
def test_a_flat_index_searches_its_vectors_where_they_are(tmp_path, corpus, kind):
    vectors = corpus
    if kind == "mapped":
        np.save(tmp_path / "v.npy", corpus)
        vectors = np.load(tmp_path / "v.npy", mmap_mode="r")
    index = build_index(vectors, "flat")
    held = flat_vectors(index)
    assert held is not None and np.shares_memory(held, vectors) and held.shape == vectors.shape
    own = faiss.IndexFlatIP(48)
    own.add(corpus)
    for a, b in zip(search(index, corpus[:90], 9), search(own, corpus[:90], 9), strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(faiss.serialize_index(index), faiss.serialize_index(own)), "the same file"


def test_vectors_live_as_long_as_their_index():
    index = build_index(unit_vectors(50, 8) + 0, "flat")  # nobody else holds them
    rubbish = [np.full((50, 8), 7, np.float32) for _ in range(20)]
    assert len(rubbish) and np.array_equal(flat_vectors(index), unit_vectors(50, 8))


@pytest.mark.parametrize("vectors", [unit_vectors(40, 8).astype(np.float64), np.asfortranarray(unit_vectors(40, 8))])
def test_other_numbers_and_layouts_are_copied_and_found(vectors):
    assert (search(build_index(vectors, "flat"), vectors, 1)[1][:, 0] == np.arange(40)).all()


@pytest.mark.parametrize("name", [*INDEXES, "IVF16,Flat", "PCA8,Flat", "IVF4,SQ8"])
def test_an_opened_index_finds_what_the_built_one_does(tmp_path, corpus, name):
    built = build_index(corpus, name)
    faiss.write_index(built, str(tmp_path / "index.faiss"))
    np.save(tmp_path / "vectors.npy", corpus)
    opened = open_index(tmp_path / "index.faiss", tmp_path / "vectors.npy")
    assert type(opened) is type(built)
    for a, b in zip(search(opened, corpus[:40], 9), search(built, corpus[:40], 9), strict=True):
        assert np.array_equal(a, b)
    if name == "flat":
        assert flat_vectors(opened).ctypes.data % 64 == 0 and not flat_vectors(opened).flags.owndata
        assert not opened.codes.is_owned, "mapped, not read into memory"
