"""How many questions a difference takes: the formula against drawn questions, and against cases by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ds_rag.evaluation.power import (
    ALIKE,
    CHANGED,
    assumed_design,
    assumed_variance,
    least_difference,
    needed_by_seen,
    needed_line,
    questions_needed,
    round_up,
)


def test_the_formula_by_hand() -> None:
    """(1.95996 + 0.84162)^2 (0.25 - 0.05^2) / 0.05^2 = 7.8489 x 99 = 777.04"""
    assert questions_needed(assumed_variance()) == 778
    assert questions_needed(assumed_variance(), design=2.0) == 1555
    assert questions_needed(1.0, difference=1.0) == 8


@pytest.mark.parametrize(("difference", "changed"), [(0.05, 0.25), (0.1, 0.25)])
def test_so_many_questions_find_the_difference_four_times_in_five(difference: float, changed: float) -> None:
    """Drawn questions: a `changed` fraction differs, so that the mean difference is `difference`; a paired z test."""
    n, rng = questions_needed(changed - difference**2, difference), np.random.default_rng(0)
    up = (changed + difference) / 2
    d_RQ = rng.choice([1.0, -1.0, 0.0], (2000, n), p=[up, changed - up, 1 - changed])
    z_R = d_RQ.mean(axis=1) / (d_RQ.std(axis=1, ddof=1) / math.sqrt(n))
    assert (z_R > 1.96).mean() == pytest.approx(0.8, abs=0.03)


def test_the_least_difference_is_the_inverse() -> None:
    for difference in (0.05, 0.1, 0.2):
        n = questions_needed(assumed_variance(difference), difference)
        assert least_difference(n) == pytest.approx(difference, rel=0.01)
    assert least_difference(3) == CHANGED and least_difference(0) == CHANGED


def test_the_design_effect_by_hand() -> None:
    """Documents of 3, 1 and 1 questions: 11 / 5 questions of its document a question has on average."""
    assert assumed_design(["a", "a", "a", "b", None], 5) == pytest.approx(1 + (11 / 5 - 1) * ALIKE)
    assert assumed_design(None, 5) == assumed_design([None] * 5, 5) == assumed_design([], 0) == 1.0


def test_by_what_was_seen() -> None:
    d_Q = np.array([1.0, -1.0, 0.0, 0.0])
    assert needed_by_seen(d_Q, None) == questions_needed(0.5)
    alike = needed_by_seen(np.array([1.0, 1.0, -1.0, -1.0]), ["a", "a", "b", "b"])
    assert alike == questions_needed(2.0) == 2 * needed_by_seen(np.array([1.0, 1.0, -1.0, -1.0]), None)
    assert needed_by_seen(np.zeros(4), None) == 0


@pytest.mark.parametrize(
    ("documents", "line", "few"),
    [
        ([None] * 1000, "1,000 held-out questions: it takes about 780 to see a difference of 5 points", False),
        ([None] * 200, "200 held-out questions: they show differences of about 10 points or more; it takes", True),
        ([None] * 34, "34 held-out questions: they show differences of about 22 points or more; it takes", True),
        ([None] * 9, "9 held-out questions: too few to see any difference but a very large one; it takes", True),
        ([n % 10 for n in range(1000)], "they show differences of about 8 points or more; it takes about 2,400", True),
    ],
)
def test_the_sentence(documents: list, line: str, few: bool) -> None:
    said, less = needed_line(documents)
    assert line in said and less == few


def test_two_digits() -> None:
    assert [round_up(n) for n in (0, 7, 99, 777, 780, 781, 2317, 10_001)] == [0, 7, 99, 780, 780, 790, 2400, 11_000]
