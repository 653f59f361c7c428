"""One model alone, and what a DeepSpeed configuration may bring: its optimizer, its scheduler, offload."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from pair import (
    ALWAYS_CLIP,
    LEARNING_RATES,
    Case,
    accumulate,
    apart,
    lr_factor,
    make_engines,
    off_course,
    run_steps,
    train_all,
)
from plain import reference
from ranks import run_ranks
from together import Together, marked

from ds_rag.engines.deepspeed_engine import held_gradients

STAGES = [(0, 0), (1, 1), (2, 2), (3, 3)]
OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu", "pin_memory": False}}}
WARMUP = {"warmup_min_lr": 0.0, "warmup_max_lr": 0.01, "warmup_num_steps": 4, "warmup_type": "linear"}
KINDS: dict[str, dict[str, Any]] = {
    "frozen retriever": {"frozen": "retriever"},
    "frozen generator": {"frozen": "generator"},
    "generator alone": {"generator_alone": 3},
    "generator alone at first": {"generator_alone": 1},
    "json optimizer": {"json_optimizer": True, "accumulation": 2},
}
PLAIN = {
    f"{kind} zero{stages[0]}": Case(stages=stages, **options) for stages in STAGES for kind, options in KINDS.items()
}
PLAIN |= {
    f"offload zero{stage} x{accumulation}": Case((stage, stage), accumulation=accumulation, extra=OFFLOAD)
    for stage in (1, 2, 3)
    for accumulation in (1, 3)
}
ALL_OFFLOAD = {"zero_optimization": {**OFFLOAD["zero_optimization"], "offload_param": {"device": "cpu"}}}
PLAIN["offload all zero3 x3"] = Case((3, 3), accumulation=3, extra=ALL_OFFLOAD)
PLAIN["offload zero3, skip"] = replace(PLAIN["offload zero3 x1"], spoil=(1, "generator", float("nan")))
PLAIN["offload zero2, skip"] = replace(PLAIN["offload zero2 x1"], spoil=(1, "generator", float("nan")))
HALF = {
    f"json optimizer {precision} zero{stages[0]}": Case(stages, precision, json_optimizer=True)
    for precision in ("bf16", "fp16")
    for stages in STAGES
}
HALF["offload bf16 zero2, skip"] = Case(precision="bf16", extra=OFFLOAD, spoil=(1, "retriever", float("nan")))


# What a stage is met with here it is met with elsewhere too, or a neighbouring stage is.
SLOW = {f"{kind} zero{stage}" for kind, stage in product(("json optimizer", "generator alone at first"), (1, 2))}
SLOW |= {f"json optimizer {precision} zero{stage}" for precision, stage in (("bf16", 1), ("fp16", 3), ("fp16", 2))}
SLOW |= {"offload zero1 x1", "offload zero2 x3", "offload zero3 x1"}


@pytest.fixture(scope="module")
def runs() -> Together:
    return Together(train_all, 2, PLAIN | HALF, SLOW)


@pytest.mark.parametrize("name", marked(PLAIN, SLOW))
def test_fp32_is_plain_pytorch(runs: Together, name: str) -> None:
    plain = reference(PLAIN[name], 2)
    for run in runs[name]:
        assert apart(run.parameters, plain.parameters) < 2e-6
        assert run.skipped == plain.skipped
        for norm, expected, skipped in zip(run.norms, plain.norms, run.skipped, strict=True):
            assert skipped or norm == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", marked(HALF, SLOW))
def test_half_precision_follows_fp32(runs: Together, name: str) -> None:
    plain = reference(HALF[name], 2)
    assert off_course(runs[name][0], plain) < (0.03 if HALF[name].precision == "bf16" else 0.005)
    assert runs[name][0].skipped == plain.skipped


@pytest.mark.parametrize("kind", ["frozen retriever", "generator alone"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_does_not_step_stays(runs: Together, kind: str, stage: int) -> None:
    run = runs[f"{kind} zero{stage}"][0]
    moved = {k.split(".")[0] for k, p in run.parameters.items() if not torch.equal(p, run.start[k])}
    assert moved == {"generator"}


def scheduled_by_deepspeed(spoil: tuple[int, str, float] | None) -> dict[str, list[float]]:
    """The learning rates that the optimizers' steps ran with; ZeRO-2 steps once for each of two groups."""
    case = Case((0, 2), steps=4, spoil=spoil, extra={"scheduler": {"type": "WarmupLR", "params": WARMUP}})
    engines = make_engines(case)
    used: dict[str, list[float]] = {name: [] for name in engines.learning}
    for name, engine in engines.learning.items():
        note = used[name].append
        engine.basic_optimizer.register_step_pre_hook(lambda o, *_, note=note: note(o.param_groups[0]["lr"]))
    run_steps(engines, case)
    return {"retriever": used["retriever"], "generator": used["generator"][::2]}


@pytest.mark.parametrize("bad_step", [None, 1])
def test_the_configured_scheduler_owns_the_learning_rate(bad_step: int | None) -> None:
    """The factor leaves it alone, and a skipped step does not advance it."""
    spoil = None if bad_step is None else (bad_step, "generator", float("nan"))
    (used,) = run_ranks(scheduled_by_deepspeed, 1, spoil)
    expected = [0.0, 0.0, 0.0025, 0.005][: 4 if bad_step is None else 3]
    assert used["retriever"] == pytest.approx(expected, abs=1e-9)
    assert used["generator"] == pytest.approx(expected, abs=1e-9)


def look_at_engines(case: Case) -> dict[str, Any]:
    """Facts about fresh engines, and after the gradients of one step."""
    engines = make_engines(case)
    before = {n: len(e.optimizer.state) for n, e in engines.learning.items()}
    engines.train()
    training = {name: module.training for name, module in engines.modules.items()}
    engines.train(False)
    quiet = not any(module.training for module in engines.modules.values())
    accumulate(engines, case, 0)
    held = {g.dtype for e in engines.learning.values() for g in held_gradients(e)}
    engines.step(lr_factor(1))
    rates = {n: {g["lr"] for g in e.optimizer.param_groups} for n, e in engines.learning.items()}
    inner = {n: getattr(e.optimizer, "optimizer", e.optimizer) for n, e in engines.learning.items()}
    return {
        "learning": set(engines.learning),
        "training": training,
        "quiet": quiet,
        "states": before,
        "held": held,
        "rates": rates,
        "fused": {n: o.defaults["fused"] for n, o in inner.items()},
        "wrapper": {n: type(e.optimizer).__name__ for n, e in engines.learning.items()},
        "clip_grad": {n: getattr(e.optimizer, "clip_grad", None) for n, e in engines.learning.items()},
    }


@pytest.mark.parametrize(
    ("stage", "precision", "wrapper", "accumulated_in"),
    [
        (0, "fp32", "AdamW", torch.float32),
        (0, "bf16", "FP16_UnfusedOptimizer", torch.bfloat16),
        (0, "fp16", "FP16_UnfusedOptimizer", torch.float16),
        (1, "fp32", "DeepSpeedZeroOptimizer", torch.float32),
        (1, "bf16", "BF16_Optimizer", torch.float32),
        (1, "fp16", "DeepSpeedZeroOptimizer", torch.float32),
        (2, "fp32", "DeepSpeedZeroOptimizer", torch.float32),
        (2, "bf16", "DeepSpeedZeroOptimizer", torch.float32),
        (2, "fp16", "DeepSpeedZeroOptimizer", torch.float32),
        (3, "fp32", "DeepSpeedZeroOptimizer_Stage3", torch.float32),
        (3, "bf16", "DeepSpeedZeroOptimizer_Stage3", torch.float32),
        (3, "fp16", "DeepSpeedZeroOptimizer_Stage3", torch.float32),
    ],
)
def test_the_table_in_engine_py(stage: int, precision: str, wrapper: str, accumulated_in: torch.dtype) -> None:
    case = Case((stage, stage), precision, accumulation=2, max_grad_norm=ALWAYS_CLIP)
    (facts,) = run_ranks(look_at_engines, 1, case)
    assert set(facts["wrapper"].values()) == {wrapper}
    assert facts["held"] == {accumulated_in}
    assert set(facts["states"].values()) == {0}  # no step was made in secret
    assert facts["fused"] == {"retriever": True, "generator": True}
    assert facts["training"] == {"retriever": True, "generator": True} and facts["quiet"]
    assert facts["rates"] == {n: {lr * lr_factor(1)} for n, lr in LEARNING_RATES.items()}
    if wrapper != "AdamW":
        assert all(0 < clip < ALWAYS_CLIP for clip in facts["clip_grad"].values())


def test_a_frozen_model_is_no_engine_and_stays_in_evaluation_mode() -> None:
    (facts,) = run_ranks(look_at_engines, 1, Case(frozen="retriever"))
    assert facts["learning"] == {"generator"}
    assert facts["training"] == {"retriever": False, "generator": True}


def optimizer_of_a_file(more: dict[str, Any]) -> tuple[str, bool]:
    """Of a usual file: the optimizer's class, and did a step move the weights. Compiling is an error."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    from ds_rag.config import OptimConfig
    from ds_rag.config.deepspeed_config import Known, resolve
    from ds_rag.engines.deepspeed_engine import make_engine
    from ds_rag.engines.engine_pair import Engines

    def compiled(*args: object, **options: object) -> None:
        raise RuntimeError("DeepSpeed compiles an operator")

    OpBuilder.load = compiled
    auto = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
    raw = {"optimizer": {"type": "AdamW", "params": auto}, "zero_optimization": {"stage": 2, **more}}
    known = Known(2, 1, 1, 1.0, 0.1, (0.9, 0.99), 1e-8, 0.0, 0, 10, "fp32", hidden_size=8)
    engine = make_engine(torch.nn.Linear(8, 8), resolve(raw, known), OptimConfig(), 0.1)
    before = engine.module.weight.detach().clone()
    engines = Engines(engine, None, 1.0)
    engines.boundary(True)
    output = engine(torch.ones(2, 8))
    engines.backward("retriever", [output], [torch.ones(2, 8)])
    engines.step(1.0)
    return type(engine.basic_optimizer).__name__, not torch.equal(before, engine.module.weight)


@pytest.mark.parametrize("more", [{}, OFFLOAD["zero_optimization"]], ids=["", "offload"])
def test_a_usual_file_with_adamw_compiles_nothing(more: dict[str, Any]) -> None:
    assert run_ranks(optimizer_of_a_file, 1, more) == [("AdamW", True)]
