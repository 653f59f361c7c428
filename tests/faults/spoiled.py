"""Training of small models on ranks in which values are made not finite on the last rank."""

from __future__ import annotations

import math
from typing import Any

from pair import LEARNING_RATES, NAMES, OPTIM, Case, accumulate, allow_fp16, ds_config, make_engines
from small import small_parts

from ds_rag.engines.deepspeed_engine import make_engine
from ds_rag.runtime import collectives
from ds_rag.step.non_finite import BadSteps
from ds_rag.train import train_step

STEPS = 3
BAD = 1


def spoil_one(where: str) -> tuple[list[bool], list[int], str, list[float]]:
    """(skipped, in a row after each, what was found, sum of the weights after each) of STEPS steps of the real step;
    at step BAD the last rank has a value that is not finite."""
    case = Case((2, 2), "fp32")

    def engine(name: str, module: Any) -> Any:
        return make_engine(module, ds_config(case, NAMES.index(name)), OPTIM, LEARNING_RATES[name])

    parts = small_parts(2, 3, engine=engine, objective="rag_sequence")
    bad = BadSteps(20)
    skipped, in_row, weights = [], [], []
    forward, differentiate = parts.joint.embedding.forward, parts.objective.differentiate
    for step in range(STEPS):
        calls = 0

        def spoiled_forward(batch: Any, last: bool, step: int = step) -> Any:
            nonlocal calls
            embedded = forward(batch, last)
            calls += 1
            if where == "embedding" and wanted(step) and calls == 2:
                embedded.outputs[0].data[0, 0] = math.nan
            return embedded

        def spoiled_gradients(*args: Any, step: int = step) -> Any:
            output = differentiate(*args)
            if where == "loss" and wanted(step):  # the gradients stay as they are
                output.loss = math.inf
            return output

        parts.joint.embedding.forward = spoiled_forward  # type: ignore[method-assign]
        parts.objective.differentiate = spoiled_gradients  # type: ignore[method-assign]
        parts.engines.train()
        outputs, _, result = train_step(parts, step, 1.0)
        skipped.append(result.skipped)
        in_row.append(bad.count(step + 1, result, [o.sign for o in outputs]))
        weights.append(sum(float(p.detach().double().abs().sum()) for p in parts.generator.parameters()))
    return skipped, in_row, bad.found, weights


def wanted(step: int) -> bool:
    return step == BAD and collectives.rank() == collectives.world() - 1


def search_scale(power: int, floor: int, spoil: bool, steps: int) -> tuple[list[bool], list[int], list[float]]:
    """(skipped, in a row, loss scale) under fp16 from a scale of 2^power that may shrink to 2^floor. spoil: the last
    rank's gradients are never finite."""
    allow_fp16()
    scales = {"initial_scale_power": power, "min_loss_scale": 2**floor, "hysteresis": 1}
    case = Case((1, 2), "fp16", extra={"fp16": scales}, steps=steps)
    engines, bad = make_engines(case), BadSteps(0)
    skipped, in_row, found = [], [], []
    for step in range(steps):
        case.spoil = (step, "retriever", math.nan) if spoil else None
        accumulate(engines, case, step)
        result = engines.step(1.0)
        skipped.append(result.skipped)
        in_row.append(bad.count(step, result, []))
        found.append(result.loss_scale)
    return skipped, in_row, found
