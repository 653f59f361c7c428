"""What a message says of the objectives comes from their table, so that a new one is in it."""

from __future__ import annotations

import pytest

from ds_rag.config.objectives import NOTHING, OBJECTIVES, ObjectiveSpec, objectives_with


@pytest.mark.parametrize("fact", ["needs_positive", "needs_generator"])
@pytest.mark.parametrize("value", [True, False])
def test_those_of_a_fact(fact, value):
    said = objectives_with(**{fact: value})
    names = said.removeprefix("--objective ").split(" | ")
    assert {name: getattr(spec, fact) == value for name, spec in OBJECTIVES.items()} == {
        name: name in names for name in OBJECTIVES
    }


def test_a_new_one_is_named(monkeypatch):
    assert objectives_with(needs_generator=False) == "--objective infonce"
    monkeypatch.setitem(OBJECTIVES, "mine", ObjectiveSpec("a.b:C", reads=NOTHING))
    assert objectives_with(needs_generator=False) == "--objective infonce | mine"
    assert objectives_with(needs_generator=False, needs_positive=True) == "--objective infonce"
