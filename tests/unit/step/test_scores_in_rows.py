"""`--teacher scores`: a teacher's scores in the rows, and no generator. Against plain loops, in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import Recorded, small_generator, small_retriever

from ds_rag.config import ObjectiveConfig, build
from ds_rag.config.objectives import OBJECTIVES
from ds_rag.data.batch import Batch
from ds_rag.data.dataset import read_data
from ds_rag.data.loader import BatchOptions
from ds_rag.engines.engine_pair import Engines
from ds_rag.losses import infonce
from ds_rag.models.generator import Generator
from ds_rag.run.resume_rules import data_hash
from ds_rag.runtime.errors import UserError
from ds_rag.step.batches import load_rows
from ds_rag.step.cached_scoring import FrozenReader
from ds_rag.step.candidates import choose_candidates
from ds_rag.step.joint_step import JointStep
from ds_rag.step.objectives import Micro, make_objective
from ds_rag.step.pair_scores import PairTexts, score_pairs

PASSAGES = ["zor is flint", "via is ebony", "kelp grows", "kel is basalt", "a pool"]
SCORES = [[1.0, -2.5, 0.25, -0.5], [-1.0, 0.5], [2.0, 1.75, -3.0], [-4.0]]  # of the first passages of four rows
VARIANTS: list[dict[str, Any]] = [
    {"objective": name} | more
    for name in ("rag_sequence", "pdist", "replug_lsr")
    for more in ({}, {"gate_margin": 0.5}, {"answer_weight": 0.3, "answer_exponent": 2.0}, {"contrastive_weight": 0.7})
]
VARIANTS += [{"objective": name, "prior": "pool"} for name in ("rag_sequence", "pdist")]
VARIANTS += [{"objective": "pdist", "target_temperature": 2.0}, {"objective": "rag_sequence", "candidates": "all"}]


def rows(scores: list[list[float]] = SCORES) -> list[dict[str, Any]]:
    """Of each row the first passage is labelled, the others are negatives."""
    found = []
    for n, row in enumerate(scores):
        first, *rest = PASSAGES[n:] + PASSAGES[:n]
        found.append({"query": f"where is {n} ?", "pos": [first], "neg": rest[: len(row) - 1], "teacher_scores": row})
    return found


def batch_of(scores: list[list[float]] = SCORES) -> Batch:
    joint = JointStep.from_models(small_retriever(), None, ObjectiveConfig(teacher="scores"))
    (batch,) = load_rows(joint, rows(scores), BatchOptions(batch=len(scores))).micro_batches(0)
    return batch


@pytest.fixture(scope="module")
def batch() -> Batch:
    return batch_of()


def micro_of(batch: Batch, config: ObjectiveConfig) -> Micro:
    random = torch.Generator().manual_seed(3)
    scores_BN = torch.randn(batch.own_BN.shape, generator=random, dtype=torch.float64).mul(2).requires_grad_()
    return Micro(batch, scores_BN, choose_candidates(scores_BN, batch, config.candidates))


def naive_loss(micro: Micro, config: ObjectiveConfig) -> torch.Tensor:
    """Row by row, passage by passage."""
    assert micro.batch.teacher_BN is not None
    total = torch.zeros((), dtype=torch.float64)
    for s_N, teacher_N in zip(micro.scores_BN, micro.batch.teacher_BN.tolist(), strict=True):
        scored = [n for n, score in enumerate(teacher_N) if not math.isnan(score)]
        first, *others = sorted((teacher_N[n] for n in scored), reverse=True)
        if config.gate_margin is not None and others and first - others[0] < config.gate_margin:
            continue
        among = range(len(s_N)) if config.prior == "pool" else scored
        log_p = {n: s_N[n] - torch.stack([s_N[m] for m in among]).exp().sum().log() for n in scored}
        told = {n: config.answer_weight * teacher_N[n] for n in scored}
        if config.objective == "rag_sequence":
            total = total - torch.stack([(log_p[n] + told[n]).exp() for n in scored]).sum().log()
            continue
        mass = sum(math.exp(told[n] / config.target_temperature) for n in scored)
        log_q = {n: told[n] / config.target_temperature - math.log(mass) for n in scored}
        for n in scored:
            if config.objective == "pdist":
                total = total + math.exp(log_q[n]) * (log_q[n] - log_p[n])
            else:
                total = total + log_p[n].exp() * (log_p[n] - log_q[n])
    total = total / len(micro.batch.rows)
    if config.contrastive_weight:
        pairs = infonce(micro.scores_BN, micro.batch.positive_BN).sum() / micro.batch.positive_BN.sum()
        total = total + config.contrastive_weight * pairs
    return total


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_losses_and_gradients_by_a_loop(variant: dict[str, Any], batch: Batch) -> None:
    config = ObjectiveConfig(**variant, teacher="scores")
    objective, micro = make_objective(config), micro_of(batch, config)
    assert not objective.needs_generator and not objective.trains_generator
    expected = naive_loss(micro, config)
    (gradient_BN,) = torch.autograd.grad(expected, micro.scores_BN)
    found = objective.differentiate(micro, objective.counts([batch], [None]))
    assert found.loss == pytest.approx(float(expected.detach()), rel=1e-12) and found.d_logp_CA is None
    torch.testing.assert_close(found.d_scores_BN, gradient_BN)
    assert found.sums["uniform_entropy"] == pytest.approx(sum(math.log(len(row)) for row in SCORES))
    assert found.sums.get("gated_queries") == (1 if config.gate_margin else None)
    if config.prior == "candidates" and not config.contrastive_weight:
        assert (found.d_scores_BN[batch.teacher_BN.isnan()] == 0).all(), "no gradient where there is no score"
        assert (found.d_scores_BN[batch.rows.index(3)] == 0).all(), "one passage alone has probability 1"


def test_the_same_scores_of_other_passages_teach_something_else(batch: Batch) -> None:
    other = batch_of([row[::-1] for row in SCORES])
    for name in ("rag_sequence", "pdist", "replug_lsr"):
        config = ObjectiveConfig(objective=name, teacher="scores")
        objective, totals = make_objective(config), {"queries": 4.0, "pairs": 4.0}
        one, two = (objective.differentiate(micro_of(b, config), totals) for b in (batch, other))
        assert one.loss != pytest.approx(two.loss, abs=0.01)
        assert not torch.allclose(one.d_scores_BN, two.d_scores_BN, atol=0.01)


def test_of_many_the_teachers_best_and_those_that_the_retriever_prefers_are_candidates(batch: Batch) -> None:
    assert batch.teacher_BN is not None
    micro = micro_of(batch, ObjectiveConfig(candidates="2"))
    for row, teacher_N, s_N, found in zip(
        batch.rows, batch.teacher_BN.tolist(), micro.scores_BN.tolist(), micro.candidates_BK.tolist(), strict=True
    ):
        scored = [n for n, score in enumerate(teacher_N) if not math.isnan(score)]
        best = max(scored, key=lambda n: teacher_N[n])
        rest = sorted((n for n in scored if n != best), key=lambda n: -s_N[n])
        assert found[: len(SCORES[row])] == [best, *rest][:2]
    assert micro_of(batch, ObjectiveConfig(candidates="all")).candidates_BK.shape == (4, 4), "the most of a row"


@pytest.mark.parametrize("way", ["rag_sequence", "pdist"])
def test_a_frozen_generators_own_scores_teach_as_the_generator_does(way: str) -> None:
    """Sums for `rag_sequence`, means for `pdist`: the loss, and the retriever after a step."""
    said = [row | {"answer": f"{'flint ' * (1 + n % 2)}ebony"} for n, row in enumerate(rows([[0.0] * 3] * 4))]
    generator = small_generator().requires_grad_(False)

    def step_of(module: Generator | None, **more: str) -> JointStep:
        retriever, config = small_retriever(), ObjectiveConfig(**settings, **more)  # type: ignore[arg-type]
        return JointStep.from_models(retriever, module, config, Engines(Recorded(retriever), module, 0.0))

    settings: dict[str, Any] = {"objective": way, "candidates": "3", "reader_loss": "none", "answer_weight": 0.5}
    settings |= {"answer_weight": 1.0} if way == "pdist" else {}
    reading = step_of(generator)
    loader = load_rows(reading, said, BatchOptions(batch=4))
    t = loader.tokens
    assert t.generator_queries and t.generator_answers and t.generator_passages and reading.prompt
    reader = FrozenReader(
        generator, reading.prompt, PairTexts(t.generator_queries, t.generator_answers, t.generator_passages)
    )
    pairs = [(n, p) for n in range(4) for p in loader.passages_of(n)]
    scored = score_pairs(generator, reading.prompt, reader.texts, pairs)
    values = scored.log_likelihoods("sum" if way == "rag_sequence" else "mean")
    given = step_of(None, teacher="scores")
    taught = load_rows(given, rows(values.reshape(4, 3).tolist()), BatchOptions(batch=4))
    one, two = reading.step(loader.micro_batches(0)), given.step(taught.micro_batches(0))
    assert two.loss == pytest.approx(one.loss, rel=1e-5)
    after = given.retriever.state_dict()
    before = small_retriever().state_dict()
    for name, weight in reading.retriever.state_dict().items():
        torch.testing.assert_close(after[name], weight, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(before[name], weight) for name, weight in after.items()), "the step taught nothing"


def test_a_resumed_run_knows_other_scores() -> None:
    joint = JointStep.from_models(small_retriever(), None, ObjectiveConfig(teacher="scores"))
    loaders = [load_rows(joint, rows(scores)) for scores in (SCORES, SCORES, [row[::-1] for row in SCORES])]
    one, same, other = (data_hash(SimpleNamespace(loader=loader)) for loader in loaders)  # type: ignore[arg-type]
    assert one == same != other


def test_what_scores_do_not_suffice_for_is_refused() -> None:
    for name in ("rag_token", "emdr2"):
        with pytest.raises(UserError, match="--teacher scores") as caught:
            make_objective(ObjectiveConfig(objective=name, teacher="scores"))
        assert "--objective rag_sequence | pdist | replug_lsr" in str(caught.value)
    with pytest.raises(UserError, match="--gate_gain"):
        make_objective(ObjectiveConfig(teacher="scores", gate_gain=0.1))
    with pytest.raises(UserError, match="--teacher"):
        make_objective(ObjectiveConfig(teacher="marks"))
    with pytest.raises(UserError, match="--teacher scores: a teacher's scores of each row's passages are needed"):
        read_data(build({}).data, True, need_scores=True)
    for name in ("infonce", "positive_only"):
        assert make_objective(ObjectiveConfig(objective=name, teacher="scores")).spec == OBJECTIVES[name]
