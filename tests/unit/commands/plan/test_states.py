"""Bytes of an engine against the tensors that DeepSpeed makes, and by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planned import setup

from ds_rag.commands.plan.setup import STAGES
from ds_rag.commands.plan.states import engine_state

P = 8_030_261_248


@pytest.mark.parametrize(
    ("stage", "precision", "bytes_each"),  # of an element, on one rank of one: weights, masters, Adam's, gradients
    [
        ("0", "fp32", (4, 0, 8, 4)),
        ("0", "bf16", (2, 4, 8, 2)),
        ("1", "fp32", (4, 4, 8, 4)),
        ("1", "bf16", (2, 4, 8, 6)),
        ("1", "fp16", (2, 4, 8, 4)),
        ("2", "fp32", (4, 4, 8, 4)),
        ("2", "bf16", (2, 4, 8, 4)),
        ("3", "fp32", (4, 0, 8, 4)),
        ("3", "fp16", (2, 4, 8, 4)),
    ],
)
def test_the_table(stage, precision, bytes_each):
    state = engine_state(setup(stages=(stage, stage), precision=precision), "generator")
    found = (state.weights, state.masters, state.moments, state.gradients)
    assert found == tuple(n * P for n in bytes_each)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_each_stage_shards_one_thing_more(precision):
    whole = {s: engine_state(setup(world=64, stages=(s, s), precision=precision), "generator") for s in STAGES}
    assert whole["1"].moments == pytest.approx(whole["0"].moments / 64)
    assert whole["2"].gradients < whole["1"].gradients / 30
    assert whole["3"].weights == pytest.approx(whole["2"].weights / 64)
    off = whole["3+offload"]
    assert off.fixed == 0 and off.host > whole["3"].fixed and off.live == whole["3"].live


def test_thin_matrices_leave_the_weights_and_shrink_the_rest():
    thin, whole = setup(lora=("generator",)), setup()
    one, all_ = engine_state(thin, "generator"), engine_state(whole, "generator")
    assert one.weights == pytest.approx(all_.weights, rel=0.01)
    assert one.moments < 0.01 * all_.moments and one.gradients < 0.01 * all_.gradients
    assert engine_state(thin, "retriever") == engine_state(whole, "retriever")


def test_a_frozen_model_is_its_weights():
    state = engine_state(setup(frozen="generator"), "generator")
    assert (state.weights, state.fixed, state.gradients) == (2 * P, 2 * P, 0)


def test_two_encoders_are_twice_one():
    one, two = engine_state(setup(), "retriever"), engine_state(setup(encoders=2), "retriever")
    assert two.weights == 2 * one.weights and two.moments == 2 * one.moments


def test_with_constant_passages_one_encoder_of_two_is_trained_and_reads_queries_alone():
    two, work = setup(encoders=2), replace(setup().work, query_side=True)
    side = setup(encoders=2, work=work)
    one, count = setup().parameters("retriever")[0], sum(two.parameters("retriever"))
    assert side.parameters("retriever") == (one, count - one) and two.parameters("retriever")[0] == 2 * one
    load, full = work.retriever(), two.work.retriever()
    assert (load.tokens, load.texts) == (work.batch * work.query, work.batch) and full.tokens > load.tokens
    assert side.parameters("generator") == two.parameters("generator")


def test_half_types_accumulate_in_place():
    work = replace(setup().work, accumulation=2)
    assert engine_state(setup(work=work, precision="fp32"), "retriever").second > 0
    assert engine_state(setup(work=work, precision="bf16"), "retriever").second == 0
