"""The figures of an audit from arrays that a reader can check by eye."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from ds_rag.evaluation import audit as figures_of
from ds_rag.evaluation.audit import audit, best_temper, compared, counts_of, enough_passages, gain_threshold
from ds_rag.evaluation.audit_scores import (
    AuditScores,
    Mixture,
    area,
    found,
    gold_among,
    gold_first,
    gold_left_out,
    log_mass,
)
from ds_rag.evaluation.audit_verdict import REFUSE, TRAIN, UNKNOWN, WEAK, verdict

NONE = -99.0  # the score of a column without a passage, which must never count

# Three rows, K = 3. The right passage is the second of the first row, was not found for the second, and the first and
# the third of the last.
GOLD = np.array([[0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 1, 0]], bool)
THERE = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]], bool)
PRIOR = np.array([[0.9, 0.8, 0.7, 0], [0.9, 0.8, 0.7, 0.1], [0.9, 0.8, 0.7, 0]])
ANSWER = np.array([[-9, -2, -8, NONE], [-8, -6, -9, -4], [-6, -9, -3, NONE]])


def scores(**changes) -> AuditScores:
    plain = AuditScores(THERE, PRIOR, ANSWER, np.array([-8.0, -10.0, -9.0]), np.array([2, 4, 3]), GOLD, 0.1)
    return replace(plain, **changes)


def test_the_gold_passage_takes_the_place_of_the_last():
    s = scores()
    assert found(s, 3).astype(int).tolist() == [[1, 1, 1, 0]] * 3
    assert gold_among(s, 3).astype(int).tolist() == [[1, 1, 1, 0], [1, 1, 0, 1], [1, 1, 1, 0]]
    assert gold_among(s, 1).astype(int).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    assert gold_left_out(s).astype(int).tolist() == [[1, 0, 1, 0], [1, 1, 1, 0], [0, 1, 0, 0]]


def test_rows_without_a_right_passage_stay_and_count_nowhere():
    s = scores(gold_QW=np.zeros_like(GOLD))
    assert (gold_among(s, 2) == found(s, 2)).all()
    assert np.isnan(gold_first(s.prior_QW, gold_among(s, 2), s.gold_QW)).all()


def test_gold_first_and_auc():
    s = scores()
    mask = gold_among(s, 3)
    assert gold_first(s.prior_QW, mask, GOLD).tolist() == [0, 0, 1]
    assert gold_first(s.answer_QW, mask, GOLD).tolist() == [1, 1, 1]
    assert area(s.prior_QW, mask, GOLD).tolist() == [0.5, 0.0, 0.5]  # 0.9 and 0.7 against 0.8: one pair of two
    assert area(s.answer_QW, mask, GOLD).tolist() == [1, 1, 1]


def test_a_tie_is_no_first_place_and_half_of_a_pair():
    values, gold, mask = np.array([[1.0, 1.0]]), np.array([[True, False]]), np.ones((1, 2), bool)
    assert gold_first(values, mask, gold).tolist() == [0] and area(values, mask, gold).tolist() == [0.5]
    only_right = np.ones((1, 2), bool)
    assert np.isnan(gold_first(values, mask, only_right)) and np.isnan(area(values, mask, only_right))


def test_gains_and_the_tempered_teacher():
    s = scores()
    assert s.gain_QW[0, :3].tolist() == [-0.5, 3.0, 0.0]  # (-9 + 8) / 2, (-2 + 8) / 2, (-8 + 8) / 2
    assert s.gain_QW[1].tolist() == [0.5, 1.0, 0.25, 1.5]
    plain = s.teacher(Mixture(0.1))
    np.testing.assert_allclose(plain[0, :3], [9 - 9, 8 - 2, 7 - 8])
    np.testing.assert_allclose(s.teacher(Mixture(0.2, 1.0, 0.5))[1], [4.5 - 1, 4 - 0.75, 3.5 - 1.125, 0.5 - 0.5])
    np.testing.assert_allclose(s.answers(0.5)[1], ANSWER[1] / 2)


def test_log_mass_is_that_of_a_softmax():
    values, gold, mask = (
        np.log([[1.0, 2.0, 5.0, 7.0]]),
        np.array([[True, False, True, False]]),
        np.array([[1, 1, 1, 0]]),
    )
    np.testing.assert_allclose(log_mass(values, mask.astype(bool), gold), np.log(6 / 8))
    assert np.isnan(log_mass(values, mask.astype(bool), ~mask.astype(bool)))


@pytest.fixture(scope="module")
def drawn() -> AuditScores:
    """4000 rows whose right passage is drawn from the posterior at alpha 0.5, beta 2 and twice the temperature."""
    rng = np.random.default_rng(0)
    rows, K = 4000, 5
    there = np.concatenate([np.ones((rows, K), bool), np.zeros((rows, 1), bool)], axis=1)
    prior, lengths = 0.2 * rng.normal(size=(rows, K + 1)), rng.integers(1, 60, rows)
    answer = -3.0 * lengths[:, None] + np.sqrt(lengths)[:, None] * rng.normal(size=(rows, K + 1))
    s = AuditScores(there, prior, answer, -3.0 * lengths, lengths, np.zeros_like(there), 0.1)
    logits = s.teacher(Mixture(0.2, 0.5, 2.0))[:, :K]
    right = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)  # a draw from the softmax
    return replace(s, gold_QW=np.arange(K + 1) == right[:, None])


def test_the_temper_that_made_the_data_is_found(drawn):
    assert best_temper(drawn, gold_among(drawn, 5)) == Mixture(0.2, 0.5, 2.0)


def test_without_right_passages_the_temper_is_the_plain_posterior():
    s = scores(gold_QW=np.zeros_like(GOLD))
    assert best_temper(s, gold_among(s, 3)) == Mixture(0.1)


def test_the_threshold_of_the_gain():
    yes, no = np.array([1.0, 2.0, 3.0, 4.0, np.nan]), np.array([0.1, 0.2, 1.5, 0.3])
    assert gain_threshold(yes, no) == 1.0  # 4/4 against 1/4, as good as 3/4 against none at 2.0: the lower one
    assert gain_threshold(yes, np.array([0.1, 1.5, 1.6, 1.7])) == 2.0  # 3/4 against none; 1.0 would keep 3/4 of these
    assert gain_threshold(yes, np.array([np.nan])) is None


def test_enough_passages():
    assert enough_passages({2: 0.5, 4: 0.77, 8: 0.8, 16: 0.8}) == 4
    assert enough_passages({2: 0.5, 4: 0.75, 8: 0.8}) == 8
    assert enough_passages({2: 0.0}) is None
    assert counts_of(16) == [2, 4, 8, 16] and counts_of(6) == [2, 4, 6] and counts_of(1) == [1]


def test_paired_differences_leave_out_rows_that_one_lacks():
    a, b = np.array([0.0, 0, 1, np.nan, 0]), np.array([1.0, 1, 1, 1, np.nan])
    found = compared(a, b, ["x", "x", "y", "y", "z"])
    assert found["n"] == 3 and found["mean"] == pytest.approx(2 / 3)
    assert found["p"] == 1.0  # one document alone has a difference: it could as well have had the other sign
    assert compared(a, b, None)["p"] == 0.5  # two questions, four patterns of signs, two as far from 0


def many(right: float, wrong: float, rows: int = 60, lead: float = 0.0) -> AuditScores:
    """Rows whose second passage is right; its G is `right`, that of others `wrong`. lead: how far the retriever puts
    the right one above the others."""
    gold = np.tile([False, True, False, False], (rows, 1))
    there = np.tile([True, True, True, False], (rows, 1))
    prior = np.tile([0.5, 0.5 + lead, 0.4, 0.0], (rows, 1))
    answer = np.where(gold, right, wrong).astype(float)
    return AuditScores(there, prior, answer, np.full(rows, -10.0), np.full(rows, 2), gold, 0.1)


@pytest.mark.parametrize(
    ("made", "advice"),
    [
        (many(-2, -8), TRAIN),
        (many(-8, -2, lead=0.1), REFUSE),
        (many(-8, -8, lead=0.1), REFUSE),  # equal: the reader says nothing
        (replace(many(-2, -8), gold_QW=np.zeros((60, 4), bool)), UNKNOWN),
    ],
)
def test_the_verdict(made, advice):
    found = verdict(audit(made), labelled=True)
    assert found["advice"] == advice
    assert ("do not train" in found["lines"][0]) == (advice == REFUSE)


def test_a_difference_within_chance_is_weak():
    few = many(-2, -8, rows=3)
    found = verdict(audit(few), labelled=True)  # 3 of 3 rows: p 0.25
    assert found["advice"] == WEAK and any("only 3 rows" in line for line in found["lines"])


def test_without_labels_the_verdict_says_that_it_is_weaker():
    assert any("weaker" in line for line in verdict(audit(many(-2, -8)), labelled=False)["lines"])
    assert not any("weaker" in line for line in verdict(audit(many(-2, -8)), labelled=True)["lines"])


def test_all_figures_of_three_rows():
    others = {"answer's words": -PRIOR}
    result = audit(scores(others=others))
    first = result["gold_first"]
    assert first["retriever"]["gold among them"]["mean"] == pytest.approx(1 / 3)
    assert first["reader"]["gold among them"]["mean"] == 1.0
    assert first["reader"]["as found"]["mean"] == pytest.approx(2 / 3)  # the second row's was not found
    assert first["retriever"]["auc"] == pytest.approx(1 / 3)
    assert [(x["K"], x["gold found"]) for x in result["by_K"]] == [(2, 2 / 3), (3, 2 / 3)]
    assert [(x["tokens"], x["n"]) for x in result["by_length"]] == [("1-4", 3)]
    assert result["reader_over"]["retriever"]["mean"] == pytest.approx(2 / 3)
    assert set(result["reader_over"]) == {"retriever", "answer's words"}
    gains = result["gains"]["best"]
    assert gains["gold among them"]["0.5"] == 2.0 and gains["gold left out"]["0.5"] == 0.0  # of 3, 1.5, 2; of 0, 1, 0
    assert result["gains"]["margin"]["0.5"] == 1.0  # 3 - 0, 1 - 0.5, 2 - 1
    assert result["suggested"]["gate_gain"] == 1.5 and result["gains"]["kept_by_threshold"]["gold left out"] == 0.0
    assert result["suggested"]["candidates"] == 2
    assert json.loads(json.dumps(result)) == result


def test_agreement_of_prior_and_teacher():
    assert figures_of.agreement(scores(), Mixture(0.1)) == 0.0  # the second or the third passage everywhere
    assert figures_of.agreement(scores(), Mixture(0.001)) == 1.0  # the prior alone decides


def test_sum_and_mean_differ_beside_the_prior_and_not_alone():
    s, mask = scores(), gold_among(scores(), 3)
    for alpha in (0.5, 1.0):
        assert (gold_first(s.answers(alpha), mask, GOLD) == gold_first(s.answers(0.0), mask, GOLD)).all()
    by_sum, by_mean = (gold_first(s.teacher(Mixture(0.1, alpha)), mask, GOLD) for alpha in (0.0, 1.0))
    assert by_sum[0] == 1 and by_mean[0] == 1 and by_sum[2] == 1
    assert by_sum[1] == 0 and by_mean[1] == 0  # 9 - 8, 8 - 6, 1 - 4: the prior is too sure at this temperature
    assert gold_first(s.teacher(Mixture(0.5)), mask, GOLD)[1] == 1  # 1.8 - 8, 1.6 - 6, 0.2 - 4
    assert gold_first(s.teacher(Mixture(0.5, 1.0)), mask, GOLD)[1] == 0  # 1.8 - 2, 1.6 - 1.5, 0.2 - 1
