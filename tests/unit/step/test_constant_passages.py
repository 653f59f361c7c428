"""Query-side training: the step against full training whose gradient through the passages is dropped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import gradients, plain_loss, small_parts

from ds_rag.engines.engine_pair import Engines, StepResult
from ds_rag.run.assemble import Parts
from ds_rag.step.joint_step import StepReport
from ds_rag.train import train_step

QUERY: dict[str, Any] = {"train_side": "query"}
VARIANTS: list[dict[str, Any]] = [
    {"objective": "rag_sequence", "learn_temperature": True},
    {"objective": "infonce", "learn_temperature": True, "lexical_prior": 0.7},
    {"objective": "rag_token", "retriever_chunk": 2, "learn_temperature": True},
    {"objective": "pdist", "candidates_from": "index", "index_candidates": 3, "freeze": "generator"},
]


@pytest.fixture(autouse=True)
def keep_the_gradients(monkeypatch):
    monkeypatch.setattr(Engines, "step", lambda self, factor, skip: StepResult(0.0, skip))


def without_gradient_of_passages(parts: Parts) -> float:
    """Full training as one graph, except that the passages' embeddings are detached; fills the gradients."""
    forward = parts.retriever.forward

    def detached(queries: Any, passages: Any) -> Any:
        q_BD, p_ND, *others = forward(queries, passages)
        return q_BD, None if p_ND is None else p_ND.detach(), *others

    parts.retriever.forward = detached  # type: ignore[method-assign]
    loss = plain_loss(parts, 0)
    loss.backward()
    return float(loss.detach())


def stepped(**flags: Any) -> tuple[Parts, StepReport]:
    parts = small_parts(2, **flags)
    return parts, train_step(parts, 0, 1.0)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v["objective"])
def test_values_and_gradients_are_those_of_full_training_without_the_passages_gradient(variant):
    """The reference has one encoder for both sides: its gradient is what reaches it through the queries."""
    full = small_parts(2, **variant)
    expected = without_gradient_of_passages(full)
    parts, report = stepped(**variant, **QUERY)
    assert report.loss == pytest.approx(expected, rel=1e-5)
    wanted, found = gradients(full), gradients(parts)
    assert {name for name in found if name not in wanted} == {n for n in found if "passage_encoder" in n}
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    for name in found.keys() - wanted.keys():
        assert not found[name].any(), name
    both, same = stepped(**variant)
    assert same.loss == pytest.approx(expected, rel=1e-5), "the same scores"
    apart = [float((gradients(both)[n] - g).norm()) for n, g in wanted.items() if n.startswith("retriever.encoder")]
    assert max(apart) > 1e-2, "the passages' gradient counts for something"


def test_no_passage_is_embedded():
    parts = small_parts(2, objective="infonce", **QUERY)
    lengths: list[int] = []
    for encoder in (parts.retriever.encoder, parts.retriever.passage_encoder):
        encoder.register_forward_pre_hook(
            lambda _, args, kwargs: lengths.append(int(kwargs["attention_mask"].sum())), with_kwargs=True
        )
    report = train_step(parts, 0, 1.0)
    of_queries = [int(batch.queries.mask_BT.sum()) for batch in parts.loader.micro_batches(0)]
    assert lengths == of_queries and report.totals["tokens"] == sum(of_queries)
    assert stepped(objective="infonce")[1].totals["tokens"] > sum(of_queries)


def test_the_spread_that_is_watched_is_that_of_what_is_trained():
    parts, report = stepped(objective="infonce", **QUERY)
    for batch, output in zip(parts.loader.micro_batches(0), report.outputs, strict=True):
        with torch.no_grad():
            q_BD = parts.retriever.embed(batch.queries, "query")
        assert output.sums["embedding_spread"] == pytest.approx(float(q_BD.std(0).mean()), rel=1e-5)


def test_what_is_looked_up_counts_not_what_the_passage_encoder_would_make():
    """The vectors are the corpus's of the beginning: other vectors are other scores."""
    parts = small_parts(2, objective="infonce", **QUERY)
    vectors = parts.joint.options.vectors
    assert vectors is not None
    vectors.vectors[0][:] = vectors.vectors[0][::-1].copy()
    assert train_step(parts, 0, 1.0).loss != pytest.approx(stepped(objective="infonce", **QUERY)[1].loss, rel=1e-3)
