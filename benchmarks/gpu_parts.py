"""One part of gpu.py in a process of its own: `gpu_parts.py PART FILE [--tiny]`; writes JSON to FILE.

A part returns `rows`, the lines of the table, and whatever else is worth keeping.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed

import torch
from gpu_device import Meter, Timed, describe, product_tflops, rates_here
from gpu_end_to_end import encoding, quickstart
from gpu_runs import Planned, planned, row, runs
from joint_parts import make_models, make_rows, make_steps, make_tokens
from joint_runs import Run
from variants import Joined

from ds_rag.config import build
from ds_rag.data.batch import Batch
from ds_rag.data.loader import BatchOptions, Loader
from ds_rag.engines.engine_pair import Engines
from ds_rag.engines.plain import PlainEngine
from ds_rag.models.shared_prefix import attention
from ds_rag.runtime import collectives
from ds_rag.step.candidates import list_candidates
from ds_rag.step.generator_side import StepOptions
from ds_rag.step.joint_step import JointStep

SHARED, MASKED, PLAIN = "shared", "shared, masked", "plain sequences"
EXACT = 3e-5  # docs/performance.md's goal of the relative gradient error in fp32
Found = dict[str, Any]


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def paths() -> tuple[str, ...]:
    """Ways that attention can go. On a GPU the shared layout has its masked form alone; on a CPU the flash kernel's."""
    return (SHARED, PLAIN) if torch.cuda.is_available() else (SHARED, MASKED, PLAIN)


@contextmanager
def by_path(generator: Any, path: str) -> Iterator[None]:
    """Inside the block cells are laid out for this path."""
    wants = attention.wants_masks
    generator.shares_prefixes = path != PLAIN
    if path == MASKED:
        attention.wants_masks = lambda lm: True
    try:
        yield
    finally:
        generator.shares_prefixes, attention.wants_masks = True, wants


def of_device(tiny: bool) -> Found:
    size = 256 if tiny else 8192
    found = describe()
    names = {"bf16": torch.bfloat16, "fp32": torch.float32}
    rates = rates_here(tiny).gpu
    sheet = {"bf16": rates.tflops, "fp32": rates.fp32_tflops}
    products = {name: product_tflops(dtype, size) for name, dtype in names.items()}
    rows = [row(f"matrix product, {n}", "TFLOP/s", rate, sheet[n], "sheet") for n, rate in products.items()]
    return {"device": found, "rows": rows}


def step_rows(run: Run, plan: Planned, timed: Timed, tiny: bool, what: str) -> list[Found]:
    """Seconds, tokens, MFU and memory of one timed step, beside the plan's."""
    rates = rates_here(tiny)
    peak = rates.gpu.fp32_tflops if run.precision == "fp32" else rates.gpu.tflops
    return [
        row(f"step, {what}", "s", timed.seconds, plan.seconds, "plan"),
        row(f"queries, {what}", "1/s", run.batch / timed.seconds, plan.queries_per_s, "plan"),
        row(f"real tokens, {what}", "1/s", plan.tokens / timed.seconds, plan.tokens / plan.seconds, "plan"),
        row(f"MFU by real tokens, {what}", "", plan.flops / timed.seconds / peak / 1e12, rates.mfu, "plan"),
        row(f"peak memory, {what}", "GB", timed.gb, plan.gb, "plan"),
    ]


def time_step(name: str, tiny: bool, ways: tuple[str, ...] = (SHARED,)) -> Found:
    """The joint step on DeepSpeed engines, by each way of attention in turn."""
    run, meter = runs(tiny)[name], Meter(tiny)
    steps = make_steps(run, device())
    found: Found = {"rows": [], "paths": {}, "run": asdict(run)}
    for way in ways:
        plan = planned(replace(run, flags=run.flags | {"share_prefixes": way != PLAIN}), rates_here(tiny), device())
        try:
            with by_path(steps.joint.generator, way):
                timed = meter.time(steps.step)
        except torch.cuda.OutOfMemoryError as error:
            found["paths"][way] = {"out of memory": str(error).splitlines()[0], "planned": asdict(plan)}
            break
        found["rows"] += step_rows(run, plan, timed, tiny, way)
        kept = {"quartiles": timed.quartiles, "repeats": timed.repeats, "loss": timed.last.loss}
        found["paths"][way] = kept | {"tokens": timed.last.totals["tokens"], "planned": asdict(plan)}
        if plan.host_gb:
            found["rows"].append(row(f"host memory, {way}", "GB", meter.host_gb, plan.host_gb, "plan"))
    return found


class Kept(PlainEngine):
    """Never steps, so that the gradients stay to be read."""

    def __init__(self, module: torch.nn.Module):
        super().__init__(module, torch.optim.SGD(module.parameters(), lr=0.0))

    def step(self) -> None:
        """Nothing."""


def gradients(joint: JointStep) -> torch.Tensor:
    """All of both models, then forgotten."""
    parameters = [p for module in joint.engines.modules.values() for p in module.parameters()]
    found = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
    for p in parameters:
        p.grad = None
    return found


def plain_step(run: Run) -> tuple[JointStep, list[Batch]]:
    """A joint step without DeepSpeed, which only leaves gradients, and its micro-batch."""
    config = build(run.flags)
    retriever, generator = make_models(run, config.model, device())
    engines, options = Engines(Kept(retriever), Kept(generator), 0.0), StepOptions(config.scoring)
    joint = JointStep.from_models(retriever, generator, config.objective, engines, Joined(), options)
    data = make_rows(run)
    tokens = make_tokens(run, len(data.train), len(data.texts), retriever, generator)
    return joint, Loader(data.train, tokens, BatchOptions(run.batch)).micro_batches(0)


def exactness(tiny: bool) -> Found:
    """In fp32: loss and gradients of the shared layout against plain sequences, norm of the difference over norm."""
    rows = []
    for model in ("gpt2", "llama_1b"):
        joint, batches = plain_step(runs(tiny)[f"exactness_{model}"])
        results = {}
        for way in paths():
            with by_path(joint.generator, way):
                results[way] = joint.step(batches).loss, gradients(joint)
        loss, wanted = results.pop(PLAIN)
        for way, (other, gradient) in results.items():
            error = float((gradient - wanted).norm() / wanted.norm())
            rows.append(row(f"gradient error, {model}, {way}", "", error, EXACT, "goal"))
            rows.append(row(f"loss, {model}, {way}", "nats", other, loss, PLAIN))
        del joint, results, wanted, gradient
        gc.collect()
    return {"rows": rows}


def scoring(tiny: bool) -> Found:
    """With a reader that is not trained: its forward alone, and the retriever's step around it."""
    run, meter = runs(tiny)["scoring"], Meter(tiny)
    steps = make_steps(run, device())
    plan, joint = planned(run, rates_here(tiny), device()), steps.joint
    assert joint.scoring is not None and joint.prompt is not None
    (batch,) = steps.loader.micro_batches(0)
    columns_BK = (torch.arange(run.batch)[:, None] + torch.arange(int(run.flags["candidates"]))) % run.batch
    cells, score = list_candidates(batch, columns_BK, joint.prompt), joint.scoring.forward
    alone = meter.time(lambda number: score(cells, batch, True))
    timed = meter.time(steps.step)
    rows = [row("cells scored", "1/s", len(cells) / alone.seconds, plan.cells / plan.scoring_s, "plan")]
    return {"rows": rows + step_rows(run, plan, timed, tiny, "reader frozen"), "run": asdict(run)}


def fp16(tiny: bool) -> Found:
    """Under a dynamic loss scale: skipped steps, the first loss beside that of fp32, then time and memory."""
    if device() == "cpu":  # DeepSpeed refuses it there; for the logic it will do
        from deepspeed.accelerator import get_accelerator

        get_accelerator().is_fp16_supported = lambda: True
    run, meter = runs(tiny)["fp16"], Meter(tiny)
    joint, batches = plain_step(replace(run, precision="fp32"))
    single = joint.step(batches).loss
    del joint
    gc.collect()  # or its models would count
    steps = make_steps(run, device())
    reports = [steps.step(number) for number in range(4 if tiny else 24)]
    timed = meter.time(steps.step)
    losses = [report.loss for report in reports]
    skipped = sum(report.result.skipped for report in reports)
    rows = [
        row("first loss", "nats", losses[0], single, "fp32"),
        row("last loss", "nats", losses[-1], losses[0], "first"),
        row(f"skipped of the first {len(losses)} steps", "", skipped),
        row("loss scale", "", reports[-1].result.loss_scale),
    ]
    rows += step_rows(run, planned(run, rates_here(tiny), device()), timed, tiny, SHARED)
    return {"rows": rows, "losses": losses}


PARTS: dict[str, Callable[[bool], Found]] = {
    "device": of_device,
    "quickstart": quickstart,
    "step_gpt2": lambda tiny: time_step("step_gpt2", tiny, paths()),
    "step_llama_1b": lambda tiny: time_step("step_llama_1b", tiny, paths()),
    "exactness": exactness,
    "scoring": scoring,
    "fp16": fp16,
    "offload_llama_1b": lambda tiny: time_step("offload_llama_1b", tiny),
    "lora_llama_8b": lambda tiny: time_step("lora_llama_8b", tiny),
    "encoding": encoding,
}
ENGINES = ("step_gpt2", "step_llama_1b", "scoring", "fp16", "offload_llama_1b", "lora_llama_8b")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("file")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.part in ENGINES:
        collectives.start()
    found = PARTS[args.part](args.tiny)
    Path(args.file).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if args.part in ENGINES:
        collectives.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
