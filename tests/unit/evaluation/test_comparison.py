"""A comparison against loops over its questions: what is common, seeds, figures with gaps, notes and verdicts."""

from __future__ import annotations

import json
from statistics import fmean

import numpy as np
import pytest

from ds_rag.evaluation.comparison import Comparison, Options, Pair, compare, verdict
from ds_rag.evaluation.seeds_and_folds import System
from ds_rag.evaluation.significance import cluster_sums, holm, interval, randomisation_test
from ds_rag.runtime.errors import UserError

RNG = np.random.default_rng(0)
IDS = [f"q{n}" for n in range(60)]
DOCUMENTS: list[str | None] = [f"d{n % 25}" for n in range(60)]


def system(name: str, rate: float, questions: slice = slice(None), seeds: int = 1) -> System:
    ids = IDS[questions]
    f1 = (RNG.random((seeds, len(ids))) < rate).astype(float)
    hit = RNG.random((seeds, len(ids)))
    hit[:, :5] = np.nan
    return System(name, ids, DOCUMENTS[questions], {"f1": f1, "hit": hit}, [[{}] * seeds] * len(ids))


A, B, C = system("a", 0.2), system("b", 0.3, slice(50, None, -1), seeds=3), system("c", 0.9, slice(10, 60))
OPTIONS = Options(figure="f1", draws=500)


@pytest.fixture(scope="module")
def found() -> Comparison:
    return compare([A, B, C], OPTIONS)


def value(system: System, figure: str, id_: str) -> float:
    """The mean over seeds of one question."""
    return fmean(system.figures[figure][:, system.ids.index(id_)])


def test_means_and_differences_are_those_of_the_questions_in_common(found: Comparison) -> None:
    common = IDS[10:51]
    assert found.questions == 41 and found.left_out == {"a": 19, "b": 10, "c": 9}
    figure = found.figures["f1"]
    assert (figure.n, figure.documents) == (41, 25)
    names = [(pair.a, pair.b) for pair in figure.pairs]
    assert names == [("a", "b"), ("a", "c"), ("b", "c")]
    for one in (A, B, C):
        mean = figure.systems[one.name]
        values = np.array([value(one, "f1", id_) for id_ in common])
        assert mean.mean == pytest.approx(values.mean())
        documents = DOCUMENTS[10:51]
        assert mean.interval == pytest.approx(interval(values, documents, draws=500))
        places = [one.ids.index(id_) for id_ in common]
        assert mean.seeds == pytest.approx([fmean(seed[places]) for seed in one.figures["f1"]])
    raw = []
    for pair, (one, other) in zip(figure.pairs, ((A, B), (A, C), (B, C)), strict=True):
        values = np.array([value(other, "f1", id_) - value(one, "f1", id_) for id_ in common])
        assert pair.difference == pytest.approx(values.mean())
        assert pair.interval == pytest.approx(interval(values, documents, draws=500))
        sums, _ = cluster_sums(values[:, None], documents)
        raw += randomisation_test(sums, draws=500)
        assert pair.p == raw[-1]
    assert [pair.p_holm for pair in figure.pairs] == holm(raw)


def test_the_order_of_systems_and_of_rows_changes_nothing(found: Comparison) -> None:
    turned = System("b", B.ids[::-1], B.clusters[::-1], {k: v[:, ::-1] for k, v in B.figures.items()}, B.signatures)
    again = compare([C, turned, A], OPTIONS).figures["f1"]
    before = {(pair.a, pair.b): pair for pair in found.figures["f1"].pairs}
    for pair in again.pairs:
        other = before[pair.b, pair.a]
        assert (pair.p, pair.p_holm) == (other.p, other.p_holm)
        assert pair.difference == pytest.approx(-other.difference)
        assert pair.interval == pytest.approx((-other.interval[1], -other.interval[0]))
    assert again.systems["b"].interval == pytest.approx(found.figures["f1"].systems["b"].interval)


def test_a_question_without_a_value_in_one_system_is_left_out_of_that_figure(found: Comparison) -> None:
    """The first five of each: q0 to q4, q50 to q46, q10 to q14."""
    figure = found.figures["hit"]
    assert figure.n == 41 - 5 - 5
    assert figure.systems["a"].mean == pytest.approx(fmean(value(A, "hit", id_) for id_ in IDS[15:46]))


def test_what_is_written_can_be_read(found: Comparison) -> None:
    again = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert again["figures"]["f1"]["pairs"][1]["p_holm"] == found.figures["f1"].pairs[1].p_holm
    assert again["verdicts"] == found.verdicts and len(found.verdicts) == 3


def test_questions_of_one_document_have_no_interval() -> None:
    lonely = [
        System(n, IDS[:3], ["d"] * 3, {"f1": np.array([[1.0, 0, v]])}, [[{}]] * 3) for n, v in (("a", 0), ("b", 1))
    ]
    figure = compare(lonely, OPTIONS).figures["f1"]
    assert figure.pairs[0].interval is None and figure.systems["a"].interval is None and figure.pairs[0].p == 1


def test_too_few_documents_and_missing_ones_are_told(found: Comparison) -> None:
    assert not [note for note in found.notes if "document" in note]
    (few,) = compare([system("a", 0.2, slice(0, 15)), system("b", 0.9)], OPTIONS).notes
    assert few == "warning: 15 documents, worth 15.0 of one size: below 20 the interval is too narrow to trust"
    some, none = system("a", 0.5), system("b", 0.5)
    some.clusters = [None] * 20 + DOCUMENTS[20:]
    none.clusters = [None] * 60
    (partly,) = compare([some, none], OPTIONS).notes
    assert partly.startswith("note: 20 of 60 questions name no document")
    (nowhere,) = compare([none, none], OPTIONS).notes
    assert nowhere.startswith("note: by question")


def test_nothing_in_common_is_refused() -> None:
    with pytest.raises(UserError, match="no question in common"):
        compare([system("a", 0.2, slice(0, 30)), system("b", 0.2, slice(30, 60))], OPTIONS)
    with pytest.raises(UserError, match="unknown figure 'em'"):
        compare([A, B], Options(figure="em"))
    empty = System("e", IDS, DOCUMENTS, {"f1": np.full((1, 60), np.nan), "hit": np.ones((1, 60))}, [[{}]] * 60)
    with pytest.raises(UserError, match="no question has a value of f1"):
        compare([A, empty], OPTIONS)
    assert list(compare([A, empty], Options(figure="hit", draws=50)).figures) == ["hit"]


def test_verdicts_in_words() -> None:
    pair = Pair("a", "b", 0.123, (0.02, 0.21), 0.01, 0.03)
    assert verdict("f1", pair) == "b is higher than a in f1, by 12.3 points (p after Holm 0.03)"
    pair = Pair("a", "b", -0.123, (-0.2, -0.05), 0.01, 0.01)
    assert verdict("f1", pair) == "a is higher than b in f1, by 12.3 points (p after Holm 0.01)"
    pair = Pair("a", "b", 0.02, (-0.031, 0.05), 0.2, 0.4)
    wanted = "no difference between a and b in f1 is shown (p after Holm 0.4)"
    assert verdict("f1", pair) == f"{wanted}; it may lie between -3.1 and +5.0 points"
    assert verdict("f1", Pair("a", "b", 0.02, None, 0.2, 0.4)) == wanted
