"""BM25 in the prior: the gradient of its weight by finite differences, and a weight of nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small import gradients, small_data, small_parts, small_retriever

from ds_rag import BatchOptions, load_rows
from ds_rag.engines.engine_pair import Engines, StepResult
from ds_rag.losses import infonce, rag_sequence
from ds_rag.runtime.errors import UserError
from ds_rag.step.joint_step import JointStep
from ds_rag.step.retriever_side import Embedded
from ds_rag.train import train_step

B, N, D, T = 3, 4, 5, 2
random = torch.Generator().manual_seed(3)
Q_BD, P_ND = (torch.randn(n, D, generator=random, dtype=torch.float64) for n in (B, N))
WORDS_BN = torch.rand(B, N, generator=random, dtype=torch.float64) * 3
LOGP_BKT = -torch.rand(B, N, T, generator=random, dtype=torch.float64) * 4


def scores(weight: torch.Tensor) -> torch.Tensor:
    """As a step makes them, in float64."""
    embedded = Embedded.__new__(Embedded)
    embedded.outputs = [Q_BD, P_ND, torch.tensor(0.4, dtype=torch.float64), weight]
    embedded.words_BN = WORDS_BN
    return embedded.scores_BN


def by_loops(weight: float) -> float:
    """-sum_i log sum_j exp(l_ij + G_ij), number by number."""
    total = 0.0
    for i in range(B):
        s = [float(Q_BD[i] @ P_ND[j]) / 0.4 + weight * float(WORDS_BN[i, j]) for j in range(N)]
        norm = math.log(sum(map(math.exp, s)))
        total -= math.log(sum(math.exp(s[j] - norm + float(LOGP_BKT[i, j].sum())) for j in range(N)))
    return total


@pytest.mark.parametrize("value", [0.0, 0.3, 2.0])
def test_the_marginal_and_its_derivative_by_the_weight(value):
    weight = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    loss = rag_sequence(scores(weight), LOGP_BKT, torch.ones(B, T, dtype=torch.bool)).sum()
    loss.backward()
    h = 1e-5
    assert float(loss.detach()) == pytest.approx(by_loops(value), rel=1e-12)
    assert float(weight.grad) == pytest.approx((by_loops(value + h) - by_loops(value - h)) / (2 * h), rel=1e-7)
    assert abs(float(weight.grad)) > 1e-3


def test_the_derivative_is_prior_minus_posterior_times_bm25():
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    s = scores(weight)
    rag_sequence(s, LOGP_BKT, torch.ones(B, T, dtype=torch.bool)).sum().backward()
    prior, posterior = s.softmax(1), (s + LOGP_BKT.sum(2)).softmax(1)
    assert float(weight.grad) == pytest.approx(float(((prior - posterior) * WORDS_BN).sum()), rel=1e-9)
    labels = torch.eye(B, N, dtype=torch.bool)
    other = torch.autograd.grad(infonce(scores(weight), labels).sum(), weight)[0]
    assert float(other) == pytest.approx(float(((prior - labels.double()) * WORDS_BN).sum()), rel=1e-9)


def test_a_weight_of_nothing_is_no_weight_to_the_last_bit(monkeypatch):
    monkeypatch.setattr(Engines, "step", lambda self, factor, skip: StepResult(0.0, skip))
    without, nothing, some = (small_parts(lexical_prior=w) for w in (None, 1.0, 1.0))
    nothing.retriever.log_lexical_weight.data.fill_(-math.inf)
    losses = []
    for parts in (without, nothing, some):
        parts.engines.train()
        losses.append(train_step(parts, 0, 1.0).loss)
    assert losses[0] == losses[1] != losses[2]
    assert without.loader.words is None and without.loader.micro_batches(0)[0].words_BN is None
    wanted, found = gradients(without), gradients(nothing)
    assert float(found.pop("retriever.log_lexical_weight")) == 0.0
    assert wanted.keys() == found.keys() and all(torch.equal(found[name], g) for name, g in wanted.items())


def test_rows_in_memory_bring_their_words():
    joint = JointStep.from_models(small_retriever(lexical_weight=0.5, learn_temperature=True), objective="infonce")
    loader = load_rows(joint, small_data(), BatchOptions(batch=3))
    report = joint.step(loader.micro_batches(0))
    assert report.outputs[0].sums["lexical_weight"] == pytest.approx(0.5)
    assert np.isfinite(report.loss) and float(joint.retriever.lexical_weight) != pytest.approx(0.5, abs=1e-6)
    loader.words = None
    with pytest.raises(UserError, match="a batch without words"):
        joint.step(loader.micro_batches(1))
