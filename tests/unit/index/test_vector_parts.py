"""Vectors in pieces, by number: one piece, shards in any order, rows beyond an index; nothing is copied whole."""

from __future__ import annotations

import numpy as np
import pytest

from ds_rag.index.vector_parts import VectorParts

WHOLE = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)


@pytest.mark.parametrize("cuts", [[], [50], [20], [0, 7, 31]])
@pytest.mark.parametrize("shuffled", [False, True])
def test_rows_by_number(cuts, shuffled):
    order = np.random.default_rng(1).permutation(50) if shuffled else np.arange(50)
    numbers = np.split(order, cuts)
    rows = VectorParts([(WHOLE[n], n) for n in numbers])
    assert len(rows) == 50
    for wanted in ([3], [49, 0, 3, 3], list(range(50)), []):
        found = rows[wanted]
        assert found.shape == (len(wanted), 4) and np.array_equal(found, WHOLE[wanted])


def test_the_pieces_stay_where_they_are():
    one, other = WHOLE[:30], WHOLE[30:]
    rows = VectorParts([(one, np.arange(30)), (other, np.arange(30, 50))])
    assert rows.arrays[0] is one and rows.arrays[1] is other
