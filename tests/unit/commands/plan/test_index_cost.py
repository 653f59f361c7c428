"""Sizes of indexes against those that FAISS builds, and what is recommended."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from ds_rag.commands.plan.duration import Rates
from ds_rag.commands.plan.hardware import GPUS
from ds_rag.commands.plan.index_cost import SIZES, plan_index
from ds_rag.commands.plan.shapes import read_shape
from ds_rag.index.faiss_index import build_index
from ds_rag.index.faiss_names import INDEXES, lists_of, spell


def test_every_named_index_has_a_size():
    assert set(SIZES) == set(INDEXES)


@pytest.mark.parametrize("count", [100, 5_000, 10**6, 21_000_000])
def test_lists_are_those_that_are_built(count):
    assert f"IVF{lists_of(count)}," in spell("ivf", count, 384)[0]


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_faisss(name):
    vectors_ND = np.random.default_rng(0).standard_normal((20_000, 96), np.float32)
    found = len(faiss.serialize_index(build_index(vectors_ND, name)))
    assert SIZES[name](20_000, 96) == pytest.approx(found, rel=0.02)


def test_measured_bytes_a_vector():
    """docs/performance.md: 100,000 vectors of 384."""
    measured = {"flat": 1536, "hnsw": 1808, "ivf": 1564, "ivfpq": 79}
    for name, bytes_each in measured.items():
        assert SIZES[name](100_000, 384) / 100_000 == pytest.approx(bytes_each, rel=0.01)


def recommended(passages: int, host: float = 5e11, hosts: int = 1) -> tuple[str, str]:
    shape = read_shape("bge-large", "--retriever", False)
    plan = plan_index(shape, passages, 200, Rates(GPUS["h100"]), "bf16", host, hosts)
    return plan.recommended, plan.shards


def test_what_is_recommended():
    assert recommended(10**5) == ("flat", "merge")
    assert recommended(21_000_000) == ("ivf", "merge")
    assert recommended(21_000_000, host=6e10) == ("ivfpq", "merge")
    assert recommended(21_000_000, host=6e10, hosts=2) == ("ivf", "keep")
    assert recommended(10**9) == ("ivfpq", "merge")
    assert recommended(10**10, hosts=2) == ("ivfpq", "keep")


def test_encoding_by_hand():
    """bge-large: 2 FLOPs for each of 24 * 12 * 1024^2 weights and a token, attention of 4 * 1024 * 24 a pair."""
    plan = plan_index(read_shape("bge-large", "--retriever", False), 1000, 200, Rates(GPUS["h100"], 0.5), "bf16", 1e12)
    wanted = 1000 * (200 * 2 * 24 * 12 * 1024**2 + 200**2 * 4 * 1024 * 24)
    assert plan.encode_gpu_hours == pytest.approx(wanted / (0.5 * 989e12) / 3600)
    assert plan.vectors == 1000 * 1024 * 4


@pytest.mark.parametrize("dimension", [64, 67, 96, 300, 384, 512, 768, 1000, 1024, 1536, 2048, 4096])
def test_codes_take_what_is_counted_at_any_dimension(dimension):
    """What is recommended for a large corpus is an index that can be built, and of that size."""
    vectors_ND = np.random.default_rng(0).standard_normal((256, dimension), np.float32)
    found = len(faiss.serialize_index(build_index(vectors_ND, "ivfpq")))
    assert SIZES["ivfpq"](256, dimension) == pytest.approx(found, rel=0.03)


def test_few_vectors_are_counted_whole():
    found = len(faiss.serialize_index(build_index(np.eye(200, 96, dtype=np.float32), "ivfpq")))
    assert SIZES["ivfpq"](200, 96) == pytest.approx(found, rel=0.03)
