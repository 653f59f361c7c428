"""Every number has bounds, and what is just outside of them is refused.

The variants: each field of the configuration and each numeric flag of a command; below, above, not finite, absurdly
large, of another type; given by a flag, by a recipe, by a saved run's config.json, by a DeepSpeed file (its numbers are
in test_deepspeed_config.py).
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import fields

import pytest

from ds_rag.commands import cli
from ds_rag.config import SECTIONS, RunConfig, build
from ds_rag.config.bounds import Bounds, Number, above, fraction, inner_fraction, integer, real
from ds_rag.config.flags import parse
from ds_rag.run.config_and_results import configuration
from ds_rag.runtime.errors import UserError

FIELDS = {f.name: f for cls in SECTIONS.values() for f in fields(cls)}
BOUNDED = {name: f.metadata["bounds"] for name, f in FIELDS.items() if f.metadata["bounds"]}
# Text that is a number, or a word: these have bounds too. (--refresh_index is a schedule, see test_schedules.py.)
TEXTS = {"candidates", "micro_cells", "refresh_fraction"}


def outside(bounds: Bounds) -> list[float]:
    """Just outside, far outside, and no number at all."""
    step = 1 if bounds.integer else max(abs(bounds.least), abs(bounds.most)) * 1e-9
    low = bounds.least if bounds.above else bounds.least - step
    high = bounds.most if bounds.below else bounds.most + step
    far = [-(10**30), 10**30] if bounds.integer else [-1e30, 1e30]
    return [x for x in (low, high, *far, math.nan, math.inf, -math.inf) if x not in bounds.also]


def inside(bounds: Bounds) -> list[object]:
    step = 1 if bounds.integer else (bounds.most - bounds.least) * 1e-9
    low = bounds.least + step if bounds.above else bounds.least
    high = bounds.most - step if bounds.below else bounds.most
    return [low, high, *bounds.also]


def test_every_numeric_field_declares_bounds():
    numeric = {name for name, f in FIELDS.items() if str(f.type).split(" ")[0] in ("int", "float")}
    assert set(BOUNDED) == numeric | TEXTS
    assert {name for name, f in FIELDS.items() if "|" in str(f.type) and name in numeric} >= {"temperature"}


@pytest.mark.parametrize("name", BOUNDED)
def test_a_value_outside_is_refused_from_a_flag_and_from_a_file(name, tmp_path):
    as_text = FIELDS[name].type == "str"
    for value in outside(BOUNDED[name]):
        with pytest.raises(UserError, match=f"--{name}: (out of bounds|wrong type)") as caught:
            parse(["--train_data", "x", f"--{name}={value}"])
        assert caught.value.expected
        with pytest.raises(UserError, match=f"--{name}: out of bounds"):  # as a saved run's configuration
            build({name: str(value) if as_text else value})
    (tmp_path / "recipe.yaml").write_text(f"train_data: x\n{name}: {outside(BOUNDED[name])[0]}\n")
    with pytest.raises(UserError, match=name):
        parse(["--config", str(tmp_path / "recipe.yaml")])


@pytest.mark.parametrize("name", BOUNDED)
def test_a_value_inside_is_taken(name):
    others = {"micro_cells": {"generator_backward": "exact"}, "folds": {"fold": 0}}
    quiet = others.get(name, {})
    for value in inside(BOUNDED[name]):
        value = str(value) if FIELDS[name].type == "str" else value
        assert build({name: value} | quiet).flat()[name] == value


@pytest.mark.parametrize("value", ["3", True, [3], {}, 1.5, None])
def test_a_saved_value_of_another_type_is_refused(value):
    with pytest.raises(UserError, match=r"--seed: (out of bounds|wrong type)"):
        build({"seed": value})


@pytest.fixture
def parsers() -> dict[str, argparse.ArgumentParser]:
    return {name: cli.parser_of(name) for name in cli.COMMANDS}


def test_every_numeric_flag_of_a_command_declares_bounds(parsers):
    seen = set()
    for command, parser in parsers.items():
        for action in parser._actions:
            if action.dest in FIELDS:
                continue
            assert action.type not in (int, float), (command, action.dest)
            numeric = isinstance(action.default, (int, float)) and not isinstance(action.default, bool)
            if not isinstance(action.type, Number):
                assert not numeric, (command, action.dest)
                continue
            seen.add(action.dest)
            assert action.default is None or action.type.bounds.holds(action.default)
            for value in outside(action.type.bounds):
                with pytest.raises(UserError, match=f"{action.option_strings[0]}: out of bounds"):
                    action.type(str(value))
            for inner in inside(action.type.bounds):
                assert action.type(str(inner)) == inner
    assert {"depth", "negatives", "margin", "posterior", "gpus", "passages", "mfu"} <= seen


@pytest.mark.parametrize("text", ["010", "1_000", "0x10", "1:30", "1.5", "", "ten", "\u0663", "1e400", "9" * 5000])
def test_text_that_is_no_whole_number(text):
    with pytest.raises(UserError, match="--n: out of bounds"):
        Number("n", integer(-5, 10**6))(text)


def test_what_bounds_say():
    assert str(integer(1, 5)) == "a whole number from 1 to 5"
    assert str(integer(1, 1000, "all")) == "a whole number from 1 to 1,000, or all"
    assert str(above(0, 1)) == "a number above 0 to 1"
    assert str(fraction()) == "a number from 0 below 1"
    assert Number("passages", integer(1, 10**12))("21e6") == 21_000_000
    assert not real(0, 1).holds(math.nan) and not integer(0, 9).holds(3.0)
    assert not inner_fraction().holds(1.0) and not inner_fraction().holds(0.0)


def test_defaults_are_within_their_bounds():
    assert build(RunConfig().flat()).flat() == RunConfig().flat()


def test_a_saved_runs_configuration_names_its_file_and_what_to_do(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RunConfig().flat()))
    assert configuration(tmp_path) == RunConfig().flat()
    for name, value in (("save_steps", -1), ("max_grad_norm", -1.0), ("max_steps", -7), ("candidates", "0")):
        (tmp_path / "config.json").write_text(json.dumps(RunConfig().flat() | {name: value}))
        with pytest.raises(UserError, match=f"config.json: {name}: out of bounds".replace(".", r"\.")) as caught:
            configuration(tmp_path)
        assert "into that file" in str(caught.value.fix)
