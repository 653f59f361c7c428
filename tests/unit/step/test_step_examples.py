"""The examples of the step run: a loss of one's own, models and rows in memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ds_rag.config.objectives import OBJECTIVES
from ds_rag.data.loader import BatchOptions

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = dict(OBJECTIVES)
    yield lambda name: __import__(name)
    for name in ("own_loss", "in_memory_rows"):
        sys.modules.pop(name, None)
    OBJECTIVES.clear()
    OBJECTIVES.update(before)


def test_rows_in_memory(example):
    losses = example("in_memory_rows").main(steps=12)
    assert losses[-1] < 0.8 * losses[0]


def test_an_objective_of_ones_own(example):
    losses = example("own_loss").main(steps=12)
    assert losses[-1] < losses[0] - 0.01


def test_its_value_is_the_formula_and_both_models_learn_from_it(example):
    own, rows = example("own_loss"), example("in_memory_rows")
    retriever, generator = example("tiny_models").new_pair(rows.ROWS, seed=1)
    joint = own.JointStep.from_models(retriever, generator, objective="expected_risk")
    assert sorted(joint.engines.learning) == ["generator", "retriever"] and "expected_risk" in OBJECTIVES
    batch = own.load_rows(joint, rows.ROWS, BatchOptions(batch=3)).micro_batches(0)[0]
    with torch.no_grad():
        q_BD, p_ND, temperature = retriever(batch.queries, batch.passages)
        prior_BN = (q_BD @ p_ND.T / temperature).softmax(-1)
    expected = 0.0
    for b, answer in enumerate(batch.answer_ids):
        for n, passage in enumerate(batch.passage_ids):
            text = [*joint.prompt.context(passage, batch.query_ids[b], len(answer)), *answer]
            with torch.no_grad():
                logits = generator.lm(input_ids=torch.tensor([text])).logits[0].log_softmax(-1)
            logp = [float(logits[len(text) - len(answer) - 1 + t, token]) for t, token in enumerate(answer)]
            expected += float(prior_BN[b, n]) * (1 - float(torch.tensor(logp).mean().exp())) / 3
    assert joint.step([batch]).loss == pytest.approx(expected, rel=1e-4)
