"""Passages in the generator's order: by hand, with log-probabilities that the test chooses."""

from __future__ import annotations

import numpy as np
import pytest

from ds_rag.data.dataset import Example
from ds_rag.evaluation import reranking
from ds_rag.evaluation.evaluator import Evaluation
from ds_rag.evaluation.per_question import PerQuestion
from ds_rag.evaluation.ranked import Ranked
from ds_rag.evaluation.reranking import AnswerScoring, reorder, rerank
from ds_rag.runtime.errors import UserError
from ds_rag.step.pair_scores import PairScores


def test_the_first_passages_change_places_and_the_others_stay():
    order, levels = reorder(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([-3.0, -1.0, -2.0]))
    assert order.tolist() == [1, 2, 0, 3, 4]
    assert levels.tolist() == [0, -1, -2, -3, -4]


def test_ties_stay_ties():
    order, levels = reorder(np.array([0.9, 0.8, 0.7, 0.6, 0.6, 0.5]), np.array([-1.0, -2.0, -1.0]))
    assert order.tolist() == [0, 2, 1, 3, 4, 5]
    assert levels.tolist() == [0, 0, -1, -2, -2, -3]
    assert reorder(np.array([0.5, 0.4]), np.array([-1.0, -1.0]))[1].tolist() == [0, 0]
    assert reorder(np.array([0.5]), np.array([-9.0, -9.0])[:1])[0].tolist() == [0]


class Fields:
    """Stands for `Prompt`: an answer is as many tokens as it has words."""

    def encode(self, name, texts, length):
        assert name == "answer" and length == 7
        return [[1] * len(text.split()) for text in texts]


class Reader:
    """What an `Evaluator` holds, as far as re-ranking asks it: four passages, three rows, one without a label."""

    def __init__(self, N: int = 3):
        rows = [
            Example("a", ("x y",), (2,), ()),
            Example("b", ("x",), (), ()),
            Example("c", ("x", "y z"), (3,), ()),
            Example("d", (), (0,), ()),
        ]
        self.data = Rows(rows)
        self.tokens = Rows(rows)
        self.settings = Rows(rows)
        self.settings.rerank = N
        self.generator, self.prompt, self.corpus = object(), Fields(), ["p"] * 4


class Rows:
    def __init__(self, rows: list[Example]):
        self.evaluation, self.ids = rows, ["p0", "p1", "p2", "p3"]
        self.labelled = [n for n, row in enumerate(rows) if row.positives]
        self.generator_passages = self.generator_queries = [np.ones(1, np.int32)] * 4

    def qrels(self, row: Example) -> dict[str, int]:
        return {self.ids[p]: 1 for p in row.positives}


def evaluated() -> Evaluation:
    scores = np.array([[2.0, 1.0, 0.0, -1.0]] * 4, np.float32)
    table = PerQuestion(["a", "b", "c", "d"], [None] * 4, {})
    return Evaluation(ranked=Ranked(scores, np.array([[0, 1, 2, 3]] * 4), temperature=0.5), questions=table)


@pytest.fixture
def scored(monkeypatch):
    """log p(y|x,z) by the passage's number; notes the pairs."""
    seen: list[tuple[int, int]] = []

    def score(reader, pairs, store, console):
        seen.extend(pairs)
        sums = np.array([{0: -9.0, 1: -8.0, 2: -5.5, 3: -1.0}[p] for _, p in pairs])
        return PairScores(sums, np.array([len(reader.texts.answers[q]) for q, _ in pairs]))

    monkeypatch.setattr(reranking, "scores_of", score)
    return seen


def test_three_orders(scored):
    result = evaluated()
    found = rerank(Reader(), result, AnswerScoring(7, "sum"))
    each = result.questions.metrics
    np.testing.assert_allclose(each["rerank_posterior/mrr@10"], [1 / 2, np.nan, 1 / 4, np.nan])
    np.testing.assert_allclose(each["rerank_likelihood/mrr@10"], [1, np.nan, 1 / 4, np.nan])
    assert scored == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2)]  # rows with a label and an answer; N passages
    # prior 2, 1, 0 over 0.5: 4, 2, 0 and a constant. Posterior: -5, -6, -5.5. Likelihood: passage 2 first.
    assert found["prior"]["mrr@10"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert found["posterior"]["mrr@10"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert found["likelihood"]["mrr@10"] == pytest.approx((1 + 1 / 4) / 2)  # passage 3 stays beyond N
    assert set(found) == {"prior", "posterior", "likelihood"}


def test_the_mean_over_an_answers_tokens_weighs_long_answers_less(scored):
    found = rerank(Reader(), evaluated(), AnswerScoring(7, "mean"))  # row 0: two tokens, posterior -0.5, -2, -2.75
    assert found["posterior"]["mrr@10"] == pytest.approx((1 / 3 + 1 / 4) / 2)


def test_all_passages(scored):
    found = rerank(Reader(9), evaluated(), AnswerScoring(7, "sum"))
    assert found["likelihood"]["mrr@10"] == pytest.approx((1 / 2 + 1) / 2)


def test_without_a_generator(scored):
    reader = Reader()
    reader.generator = None
    with pytest.raises(UserError, match="--rerank"):
        rerank(reader, evaluated(), AnswerScoring(7, "sum"))
