"""Vectors that are looked up by passage number, from parts of any order, against a plain table."""

from __future__ import annotations

import numpy as np
import pytest

from ds_rag.index.passage_vectors import PassageVectors


def test_each_number_has_the_vector_of_its_place_in_its_part(tmp_path):
    table_ND = np.arange(24, dtype=np.float32).reshape(8, 3)
    numbers = [np.array([5, 0, 3]), np.array([1, 4]), np.zeros(0, np.int64), np.array([7, 6, 2])]
    for n, numbers_n in enumerate(numbers):
        np.save(tmp_path / f"{n}.npy", table_ND[numbers_n])
    mapped = [np.load(tmp_path / f"{n}.npy", mmap_mode="r" if len(numbers[n]) else None) for n in range(4)]
    vectors = PassageVectors(list(zip(numbers, mapped, strict=True)))
    assert len(vectors) == 8 and len(PassageVectors()) == 0
    for wanted in ([2, 2, 5, 0], [7], [4, 3, 1], list(range(8))):
        found = vectors.take(wanted)
        assert found.dtype == np.float32 and np.array_equal(found, table_ND[wanted])
    assert not np.array_equal(vectors.take([0]), vectors.take([5]))
    assert isinstance(vectors.vectors[0], np.memmap), "what is on the disk stays there"


def test_a_number_without_a_vector_is_refused():
    with pytest.raises(AssertionError, match="each passage once"):
        PassageVectors([(np.array([0, 0]), np.zeros((2, 3), np.float32))])
