"""--detect_collapse: what is said when the retriever falls together or the generator ignores its passages."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from commands import lines, train

from ds_rag.evaluation.collapse import (
    IDLE_STEPS,
    MEAN_STEPS,
    PEAKED_STEPS,
    TRY,
    CollapseWatch,
    Retrieved,
    is_idle,
    is_peaked,
)

LOG8 = math.log(8)


@pytest.fixture
def said() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def watch(said) -> CollapseWatch:
    return CollapseWatch(lambda kind, text: said.append((kind, text)))


def step(spread: float = 0.06, prior: float = 1.0, posterior: float = 0.5) -> dict[str, float]:
    entropies = {"prior_entropy": prior, "posterior_entropy": posterior, "uniform_entropy": LOG8}
    return {"embedding_spread": spread, "skipped": 0, **entropies}


def feed(watch: CollapseWatch, values: dict[str, float], times: int) -> None:
    for n in range(times):
        watch.after_step(n + 1, values)


def test_a_run_that_goes_well_is_not_warned(watch, said):
    """Entropies and spread of the built-in run: an idle start of 70 steps, then a posterior that is sure."""
    feed(watch, step(0.063, 1.6, 1.6), 70)
    feed(watch, step(0.087, 0.05, 0.002), 400)
    watch.after_evaluation(100, Retrieved(distinct=218, queries=64, k=4, corpus=1600, wanted=64))
    assert said == []


def test_a_spread_that_falls_is_said_once(watch, said):
    feed(watch, step(0.06), 20)
    feed(watch, step(0.013), MEAN_STEPS)
    assert said == [], "more than a fifth of it"
    feed(watch, step(0.001), 50)
    ((kind, text),) = said
    assert kind == "spread" and "0.06" in text and TRY["spread"] in text


def test_a_run_that_is_often_stopped_is_watched_as_one_that_is_not(said):
    """The spread falls in one part and is seen in the next; what was said is not said again."""

    def part(memory: dict[str, Any], spread: float, times: int) -> dict[str, Any]:
        watch = CollapseWatch(lambda kind, text: said.append((kind, text)))
        watch.remember(json.loads(json.dumps(memory)))
        feed(watch, step(spread, prior=LOG8, posterior=LOG8), times)
        return watch.memory

    memory = part({}, 0.06, 20)
    for _ in range(3):
        memory = part(memory, 0.001, 3)
    assert [kind for kind, _ in said] == ["spread"]
    for _ in range(30):
        memory = part(memory, 0.06, 10)
    assert [kind for kind, _ in said] == ["spread", "idle"]


def test_a_few_bad_steps_are_no_collapse(watch, said):
    feed(watch, step(0.06), 20)
    feed(watch, step(0.001), 2)
    feed(watch, step(0.06), 20)
    assert said == []


@pytest.mark.parametrize(
    ("found", "collapsed"),
    [
        (Retrieved(4, 64, 4, 1600), True),
        (Retrieved(25, 64, 4, 1600), True),
        (Retrieved(26, 64, 4, 1600), False),
        (Retrieved(1, 64, 1, 1600), True),
        (Retrieved(6, 8, 4, 1600), True),
        (Retrieved(8, 8, 4, 1600), False),
        (Retrieved(4, 3, 4, 1600), False),  # too few queries
        (Retrieved(10, 64, 4, 20), False),  # a small corpus
        (Retrieved(4, 64, 4, 40), True),
        (Retrieved(20, 1000, 4, 1600, wanted=20), False),  # that is what they ask for
        (Retrieved(4, 1000, 4, 1600, wanted=20), True),
    ],
)
def test_few_passages_for_all_queries(watch, said, found, collapsed):
    watch.after_evaluation(7, found)
    watch.after_evaluation(8, found)
    assert [kind for kind, _ in said] == ["retrieved"] * collapsed
    assert all("step 7" in text and f"find {found.distinct} passages" in text for _, text in said)


def test_a_sure_posterior_over_a_uniform_prior(watch, said):
    assert is_peaked(LOG8, 0.01, LOG8) and not is_peaked(1.5, 0.01, LOG8) and not is_peaked(LOG8, 0.5, LOG8)
    feed(watch, step(prior=LOG8, posterior=0.01), PEAKED_STEPS - 1)
    assert said == []
    feed(watch, step(prior=LOG8, posterior=0.01), 1)
    assert [kind for kind, _ in said] == ["peaked"]


@pytest.mark.parametrize(("prior", "posterior"), [(LOG8, LOG8), (1.0, 0.999 * LOG8), (1.2, 1.2001)])
def test_a_generator_that_reads_no_passage(watch, said, prior, posterior):
    feed(watch, step(prior=prior, posterior=posterior), IDLE_STEPS - 1)
    feed(watch, step(), 1)
    feed(watch, step(prior=prior, posterior=posterior), IDLE_STEPS - 1)
    assert said == [], "not in a row"
    feed(watch, step(prior=prior, posterior=posterior), 1)
    assert [kind for kind, _ in said] == ["idle"]


def test_a_sure_prior_leaves_nothing_to_say_and_neither_does_one_candidate():
    assert not is_idle(0.01, 0.01, LOG8)
    assert not is_idle(0.0, 0.0, 0.0) and not is_peaked(0.0, 0.0, 0.0)


def test_skipped_steps_and_objectives_without_a_posterior_are_passed_over(watch, said):
    feed(watch, step() | {"embedding_spread": math.nan, "skipped": 1}, 10)
    feed(watch, {"embedding_spread": 0.05, "prior_entropy": 1.0, "skipped": 0}, 2 * IDLE_STEPS)
    assert said == []


def test_it_can_be_turned_off(said):
    watch = CollapseWatch(lambda kind, text: said.append((kind, text)), on=False)
    feed(watch, step(0.06), 5)
    feed(watch, step(0.0001), 50)
    watch.after_evaluation(1, Retrieved(4, 64, 4, 1600))
    assert said == []


def test_a_real_run_that_collapses_is_warned(tmp_path):
    """A retriever whose steps throw its weights about, and whose decay takes all else from them."""
    flags = ["--retriever_learning_rate", "0.3", "--weight_decay", "3.2", "--warmup_steps", "0", "--max_steps", "14"]
    flags += ["--seed", "3"]  # not every start collapses
    few = ["--refresh_index", "0", "--save_steps", "0", "--eval_answers", "false"]
    printed = train(tmp_path / "run", *flags, *few).stdout
    assert printed.count("warning: step") >= 1 and "the retriever is collapsing" in printed
    assert "to try:   a smaller --retriever_learning_rate" in printed
    assert "spread" in {line["about"] for line in lines(tmp_path / "run", "warning")}
