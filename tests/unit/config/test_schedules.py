from __future__ import annotations

import math

import pytest

from ds_rag.config.schedules import Schedule, lr_factor
from ds_rag.runtime.errors import UserError


def due(text: str, last: int) -> list[int]:
    schedule = Schedule(text)
    return [step for step in range(last + 1) if schedule.due(step)]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("7", [7, 14, 21, 28]),
        ("0", []),
        (" 10 ", [10, 20, 30]),
        ("0-10:5,10-:10", [5, 10, 20, 30]),
        ("0-6:3,12-30:6", [3, 6, 18, 24, 30]),
        ("5-:10", [15, 25]),
        ("0-4:1,20-:0", [1, 2, 3, 4]),
        ("10-20:5,0-10:10", [10, 15, 20]),
    ],
)
def test_due(text, steps):
    assert due(text, 30) == steps


@pytest.mark.parametrize("text", ["", "often", "-5", "1.5", "0-10", "10-10:2", "20-10:2", "0-10:5;10-:2", "0-10:5,"])
def test_no_schedule(text):
    with pytest.raises(UserError, match="--refresh_index") as caught:
        Schedule(text)
    assert "0-100:10" in str(caught.value)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_lr_factor_rises_then_falls(kind):
    factors = [lr_factor(step, 20, 5, kind) for step in range(20)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == pytest.approx(1.0)
    after = factors[5:]
    if kind == "constant":
        assert after == [1.0] * 15
    else:
        assert after == sorted(after, reverse=True) and 0 < after[-1] < 0.1
    if kind == "linear":
        assert after == pytest.approx([1 - n / 15 for n in range(15)])
    if kind == "cosine":
        assert after == pytest.approx([0.5 + 0.5 * math.cos(math.pi * n / 15) for n in range(15)])


def test_lr_factor_without_warmup_and_with_warmup_alone():
    assert lr_factor(0, 10, 0, "linear") == 1.0
    assert [lr_factor(step, 3, 3, "cosine") for step in range(3)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert lr_factor(0, 1, 0, "cosine") == 1.0
