"""One training step through both engines: the gradients of the whole, and what reaches the retriever."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small import gradients, plain_loss, small_parts

from ds_rag.config import build
from ds_rag.config.objectives import OBJECTIVES
from ds_rag.engines.engine_pair import Engines, StepResult
from ds_rag.run.assemble import Parts
from ds_rag.run.checkpoint import TrainState
from ds_rag.run.early_stopping import is_time_to_stop, note_metric
from ds_rag.run.step_metrics import ProgressText, step_values
from ds_rag.runtime.errors import UserError
from ds_rag.train import train_step

PLAIN: list[dict[str, Any]] = [{"objective": name} for name in OBJECTIVES]
VARIANTS: list[dict[str, Any]] = [{"objective": name, "learn_temperature": True} for name in OBJECTIVES]
VARIANTS += [{"objective": "rag_sequence", "contrastive_weight": 0.5, "prior": "pool"}]
VARIANTS += [{"objective": "rag_token", "answer_weight": 1.5}]
VARIANTS += [{"objective": name, "lexical_prior": 0.7} for name in ("rag_sequence", "emdr2", "infonce")]
VARIANTS += [{"objective": "rag_sequence", "lexical_prior": 0.7, "prior": "pool", "retriever_chunk": 2}]
GATE: dict[str, Any] = {"gate_gain": 0.1}  # some rows of every step pass it, some do not
VARIANTS += [{"objective": name} | GATE for name in ("rag_sequence", "emdr2")]
VARIANTS += [GATE | {"objective": "rag_sequence", "freeze": "generator"}]
VARIANTS += [GATE | {"objective": "rag_sequence", "generator_backward": "posterior", "posterior_threshold": 0.0}]
VARIANTS += [{"objective": name, "candidates": "all"} for name in ("rag_sequence", "rag_token")]
VARIANTS += [{"objective": "pdist", "reader_loss": "posterior"}, {"objective": "emdr2", "reader_loss": "none"}]
VARIANTS += [{"objective": "rag_sequence", "freeze": frozen} for frozen in ("retriever", "generator")]
VARIANTS += [{"objective": name, "candidates_from": "index", "index_candidates": 3} for name in OBJECTIVES]
VARIANTS += [{"objective": "rag_sequence", "candidates_from": "both", "index_candidates": 3, "prior": "pool"}]


# How the same gradient can be computed; `auto` under almost no memory takes two passes.
WAYS: list[dict[str, Any]] = [
    {"generator_backward": "one_pass"},
    {"generator_backward": "exact", "micro_cells": "1"},
    {"generator_backward": "exact", "micro_cells": "5"},
    {"generator_backward": "exact"},
    {"generator_backward": "auto", "memory_budget": 1e-4},
    {"generator_backward": "posterior", "posterior_threshold": 0.0},
    {"share_prefixes": False},
    {"share_prefixes": False, "generator_backward": "exact", "micro_cells": "3"},
    {"retriever_chunk": 2, "generator_backward": "exact", "micro_cells": "4"},
    {"gradient_checkpointing": True, "retriever_chunk": 4},
    {"gradient_checkpointing": True, "generator_backward": "exact", "micro_cells": "4"},
    {"prompt_template": "{query} {passage} ->"},
]
# By what a way can tell apart: a weight a cell, a weight a token, none, detached with a reader loss, other tokens.
WAYS_OF: list[Any] = [{"objective": name} for name in ("rag_sequence", "rag_token", "infonce", "emdr2")]
WAYS_OF += [{"objective": "positive_only", "lm_tokens": "answer"}]
WAYS_OF += [{"objective": "rag_sequence", "answer_exponent": 0.5, "answer_weight": 1.5}]
WAYS_OF += [{"objective": name} for name in ("positive_only", "pdist", "replug_lsr")]


def label(variant: dict[str, Any]) -> str:
    return "-".join(str(v) for v in variant.values())


@pytest.fixture(autouse=True)
def keep_the_gradients(monkeypatch):
    """The step itself is the engines' business: here it leaves the gradients to be looked at."""
    monkeypatch.setattr(Engines, "step", lambda self, factor, skip: StepResult(0.0, skip))


def one_graph(parts: Parts) -> float:
    """The same loss as one graph through both models, by plain autograd; fills the parameters' gradients."""
    parts.engines.train()
    loss = plain_loss(parts, 0)
    loss.backward()
    return float(loss.detach())


def every_other(rows: list[Any], columns: list[Any]) -> list[Any]:
    """All pairs; those of odd row plus column are slow: in `make test` each value meets half of the others."""
    marks = {True: [pytest.mark.slow], False: []}
    return [
        pytest.param(row, column, marks=marks[(n + m) % 2 == 1], id=f"{label(row)}-{label(column)}")
        for n, row in enumerate(rows)
        for m, column in enumerate(columns)
    ]


@pytest.mark.parametrize(("variant", "way"), every_other(WAYS_OF, WAYS))
def test_every_way_gives_the_gradient_of_one_graph(variant, way):
    compare_with_one_graph(2, variant | way)


@pytest.mark.parametrize("variant", VARIANTS, ids=label)
@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_gradients_equal_those_of_one_graph_through_both_models(variant, accumulation):
    """The joint loss separates: two backwards from cached gradients are the exact gradient."""
    compare_with_one_graph(accumulation, variant)


def compare_with_one_graph(accumulation: int, variant: dict[str, Any]) -> None:
    whole, split = (small_parts(accumulation, **variant) for _ in range(2))
    expected = one_graph(whole)
    split.engines.train()
    outputs, totals, _ = train_step(split, 0, 1.0)
    assert sum(output.loss for output in outputs) == pytest.approx(expected, rel=1e-5)
    wanted, found = gradients(whole), gradients(split)
    assert wanted.keys() == found.keys()
    for name in {key.split(".")[0] for key in wanted}:
        a, b = (torch.cat([g.flatten() for key, g in x.items() if key.startswith(name)]) for x in (wanted, found))
        learns = name in split.engines.learning
        assert bool(a.norm() > 1e-3) == learns, f"{name}: the case shows nothing"
        assert float((a - b).norm()) <= 2e-5 * float(a.norm()), name
    if variant.get("learn_temperature"):
        own = float(wanted["retriever.log_temperature"])  # small beside the others': held by itself
        assert abs(own) > 1e-5 and float(found["retriever.log_temperature"]) == pytest.approx(own, rel=1e-2)
    if variant.get("lexical_prior"):
        own = float(wanted["retriever.log_lexical_weight"])
        assert abs(own) > 1e-4 and float(found["retriever.log_lexical_weight"]) == pytest.approx(own, rel=1e-3)
        assert outputs[0].sums["lexical_weight"] == pytest.approx(0.7)
    assert totals["queries"] == 3 * accumulation


def test_a_closed_gate_leaves_no_gradient():
    parts = small_parts(2, gate_gain=100.0)
    parts.engines.train()
    outputs, totals, _ = train_step(parts, 0, 1.0)
    assert all(not g.any() for g in gradients(parts).values())
    assert sum(output.sums["gated_queries"] for output in outputs) == totals["queries"] == 6


def test_a_frozen_generator_reads_each_row_without_a_passage_once(monkeypatch):
    """And one that is trained reads them at every step; without `--gate_gain` none is read."""
    assert small_parts().joint.without is None and small_parts(gate_margin=0.1).joint.without is None
    for frozen, wanted in (("generator", [6, 0]), ("none", [6, 6])):
        parts, read = small_parts(2, freeze=frozen, **GATE), []
        without = parts.joint.without
        assert without is not None
        original = without._read
        monkeypatch.setattr(without, "_read", lambda b, rows, f=original, r=read: (r.extend(rows), f(b, rows)))
        counts = []
        for _ in range(2):
            read.clear()
            train_step(parts, 0, 1.0)
            counts.append(len(read))
        assert counts == wanted


@pytest.mark.parametrize("variant", PLAIN + VARIANTS[len(PLAIN) :], ids=label)
def test_noise_for_the_generators_logits_reaches_the_retriever_where_it_is_claimed(variant):
    """The gradient test of the whole: an objective is end to end if and only if this changes the retriever."""
    found = []
    for noisy in (False, True):
        parts = small_parts(**variant)
        if noisy and parts.generator is not None:
            replace_logits_by_noise(parts)
        parts.engines.train()
        train_step(parts, 0, 1.0)
        found.append({k: g for k, g in gradients(parts).items() if k.startswith("retriever.")})
    norm = math.sqrt(sum(float(g.square().sum()) for g in found[0].values()))
    change = math.sqrt(sum(float((found[0][k] - found[1][k]).square().sum()) for k in found[0]))
    if variant.get("freeze") == "retriever":
        assert norm == change == 0.0
        return
    assert norm > 0
    if variant["objective"] in ("positive_only", "infonce"):  # labels alone move the retriever
        assert change == 0.0
    else:
        assert change > 0.05 * norm


def replace_logits_by_noise(parts: Parts) -> None:
    random = torch.Generator().manual_seed(99)

    def noise(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits * 0 + 3 * torch.randn(logits.shape, generator=random)

    parts.generator.lm.get_output_embeddings().register_forward_hook(noise)


def test_every_micro_batch_announces_whether_it_is_the_last():
    parts = small_parts(3)
    train_step(parts, 0, 1.0)
    for engine in parts.engines.learning.values():
        assert engine.boundaries == [False, False, True]


def test_summarise_turns_sums_into_means():
    parts = small_parts(2, objective="rag_sequence", contrastive_weight=0.5)
    outputs, totals, _ = train_step(parts, 0, 1.0)
    line = step_values(outputs, totals, StepResult(2.5, True), began=0.0, parts=parts)
    assert line["loss"] == pytest.approx(sum(o.loss for o in outputs))
    assert line["prior_entropy"] == pytest.approx(sum(o.sums["prior_entropy"] for o in outputs) / totals["queries"])
    shares = [value for name, value in line.items() if name.startswith("grad_share/")]
    assert len(shares) == 2 and sum(shares) == pytest.approx(1.0)
    spreads = [o.sums["embedding_spread"] for o in outputs]
    assert line["embedding_spread"] == pytest.approx(sum(spreads) / 2) and min(spreads) > 0
    assert line["grad_norm"] == 2.5 and line["skipped"] == 1
    assert all(line[name] > 0 for name in ("tokens_per_s", "queries_per_s", "memory_gb"))
    assert "tokens" not in line


def test_embedding_spread_is_the_mean_standard_deviation_of_a_dimension():
    parts = small_parts()
    batch = parts.loader.micro_batches(0)[0]
    with torch.no_grad():
        p_ND = parts.retriever(batch.queries, batch.passages)[1]
    outputs, _, _ = train_step(parts, 0, 1.0)
    assert outputs[0].sums["embedding_spread"] == pytest.approx(float(p_ND.std(0).mean()), rel=1e-5)


def test_judge_keeps_the_best_and_counts_patience():
    stage = build({"metric_for_best_model": "mrr@10", "early_stopping_patience": 2}).evaluation
    state = TrainState()
    stops = []
    for step, value in enumerate([0.2, 0.5, 0.5, 0.6, 0.1, 0.6]):
        state.step = step
        note_metric(state, {"mrr@10": value}, stage, state.step)
        stops.append(is_time_to_stop(state, stage))
    assert stops == [False, False, False, False, False, True]
    assert (state.best, state.best_step) == (0.6, 3)


def test_without_patience_nothing_stops_and_an_unknown_metric_is_an_error_only_where_it_matters():
    state = TrainState()
    for _ in range(9):
        note_metric(state, {"recall@1": 0.1}, build({}).evaluation, 0)
        assert not is_time_to_stop(state, build({}).evaluation)
    note_metric(state, {"recall@1": 0.1}, build({"metric_for_best_model": "bleu"}).evaluation, 0)
    for wish in ({"load_best_model_at_end": True}, {"early_stopping_patience": 1}):
        with pytest.raises(UserError, match="bleu") as caught:
            note_metric(state, {"recall@1": 0.1}, build({"metric_for_best_model": "bleu"} | wish).evaluation, 0)
        assert "recall@1" in str(caught.value)


def test_the_live_line_smooths_the_loss_and_shows_the_last_evaluation():
    live = ProgressText({"recall@1": 0.25, "rougeL": 0.5})
    assert live.line(10.0) == "loss 10.000  recall@1 0.25"
    live.metrics = {"recall@1": 0.5, "exact_match": 1.0}
    assert live.line(float("nan")) == live.line(float("inf")) == "loss 10.000  recall@1 0.50  answers 1.00"
    assert live.line(0.0) == "loss 9.000  recall@1 0.50  answers 1.00"
