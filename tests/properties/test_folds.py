"""Folds for any rows: a partition, whole documents, the same in any order, balanced."""

from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ds_rag.data.splits import FOLDS, FRACTION, HELD_OUT, LEAST, SplitOptions, Unit, group_rows, split_rows
from ds_rag.runtime.errors import UserError

names = st.none() | st.integers(0, 8).map("d{}".format)
units = st.builds(
    Unit, names, st.sampled_from(["who ?", "Who  ?", "what ?", "where ?", "a", "b", "c"]), st.tuples(st.integers(0, 9))
)


def linked(one: Unit, other: Unit) -> bool:
    """Do these two rows have to stay together?"""
    if one.document is not None or other.document is not None:
        return one.document == other.document
    return one.query.lower().split() == other.query.lower().split() or bool(set(one.passages) & set(other.passages))


@settings(max_examples=150, deadline=None)
@given(st.lists(units, min_size=1, max_size=40), st.integers(2, 4), st.randoms(use_true_random=False))
def test_folds(rows, count, random):
    groups = group_rows(rows)
    assume(len(set(groups)) >= count)
    split, folds = split_rows(rows, SplitOptions(FOLDS, count, 0))
    assert set(folds) == set(range(count))  # no fold is empty, and every row has one
    for n, one in enumerate(rows):
        assert split.known(one) == folds[n]
        assert all(folds[n] == folds[m] for m, other in enumerate(rows) if linked(one, other))
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled, again = split_rows([rows[n] for n in order], SplitOptions(FOLDS, count, 0))
    assert again == [folds[n] for n in order]
    assert (shuffled.documents, shuffled.queries) == (split.documents, split.queries)
    loads = Counter(folds)
    assert max(loads.values()) - min(loads.values()) <= max(Counter(groups).values())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=120), st.floats(0.05, 0.5))
def test_a_fraction(documents, fraction):
    rows = [Unit(f"d{d}", f"q{n}") for n, d in enumerate(documents)]
    try:
        _, parts = split_rows(rows, SplitOptions(FRACTION, 2, HELD_OUT, fraction))
    except UserError:
        return
    sides = defaultdict(set)
    for row, part in zip(rows, parts, strict=True):
        sides[row.document].add(part)
    assert all(len(side) == 1 for side in sides.values())
    held_out = parts.count(HELD_OUT)
    assert LEAST <= held_out <= len(rows) / 2 and held_out >= round(fraction * len(rows))
