"""`ds-rag plan --retriever bge-large --generator llama-8b --passages 21e6`: tables, advice, and JSON."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import Any

from ds_rag.commands.plan.advice import Way, least_memory, ways
from ds_rag.commands.plan.communication import plan_traffic
from ds_rag.commands.plan.duration import step_time
from ds_rag.commands.plan.flags import command_line, machines, training_flags
from ds_rag.commands.plan.index_cost import RECALL, IndexPlan, plan_index
from ds_rag.commands.plan.memory import plan_memory
from ds_rag.commands.plan.reasons import explain, of_others
from ds_rag.commands.plan.request import Request, read_request
from ds_rag.commands.plan.setup import NAMES, STAGES, Setup
from ds_rag.commands.plan.teacher_cost import plan_teacher, teacher_table
from ds_rag.runtime.console import Console, duration
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_json, write_json

GB = 1e9
INDEX_FRACTION = 0.5  # of a machine's memory that an index may take


def main(args: argparse.Namespace) -> int:
    """Runs the command; its flags are in request.py. Returns the exit code."""
    request = read_request(args)
    check_json(request.json, ("models", "ways"))
    console = Console()
    if request.unknown_gpu:
        console.say(
            f"note: this machine's GPU is not in the table, so this is for an {request.rates.gpu.name}; --gpu NAME "
            "--gpu_memory GB says what it is",
            style="yellow",
        )
    if request.setup.device == "cpu":
        console = ForProcessor()
        memory = f"{request.rates.gpu.memory:.3g} GB"
        console.say(f"planned for this machine's processor ({memory}); --gpu NAME plans for another device")
    found = ways(request.setup, request.fixed, request.rates, request.limits)
    best = next((way.setup for way in found if way.setup), None)
    figures: dict[str, Any] = {"models": models(request.setup), "ways": way_figures(found, request)}
    console.table("Models", *model_table(request.setup))
    console.table(f"Ways to train on {request.rates.gpu.name}", *way_table(found, request))
    if best is None:
        raise UserError(
            f"nothing fits on {request.rates.gpu.name} (a plan uses {request.limits.usable / GB:.3g} GB of each)",
            found=f"{least_memory(request.setup, request.fixed) / GB:.3g} GB at least, with {request.setup.world}",
            fix="more --gpus, a --gpu with more memory, --lora generator, shorter texts or a smaller batch",
        )
    index = index_of(request, best.world)
    stages = stage_rows(best, request)
    console.table(f"Memory of one of {best.world} GPUs by ZeRO stage, GB", *stage_table(stages))
    console.table("The same by the way a step is computed, GB", *variant_table(variants := variant_rows(best, request)))
    reasons = explain(best, request.fixed, request.rates, request.limits) | of_others(found, request.rates)
    console.say("Recommended, and why", style="bold")
    for name, text in reasons.items():
        console.say(f"  {name:22} {text}")
    show_step(best, request, console)
    figures |= {"stages": stages, "variants": variants, "recommended": recommended(best, request, reasons, index)}
    if index is not None:
        console.table(*index_table(index, request, best.world))
        console.say(f"index: {index.recommended}. {index.reason}")
        console.say(f"on disk: also {index.vectors / GB:,.3g} GB of float32 vectors")
        figures["index"] = asdict(index)
    if best.stores_scores:
        teacher = plan_teacher(best, request.rows, request.passages, request.rates)
        console.table(*teacher_table(teacher, best.world))
        figures["teacher"] = asdict(teacher)
    if (nodes := machines(best.world, request.limits.gpus_per_node)) > 1:
        console.say(
            f"\nRun on each of {nodes} machines, with its --node_rank; node1 stands for the name of the first machine:",
            lines=True,
        )
    line = command_line(best, request.limits.gpus_per_node, index, request.data)
    Console.say(console, f"\n{line}", lines=True)  # literally, whatever its paths are called
    write_json(request.json, figures)
    return 0


class ForProcessor(Console):
    """Where there is no GPU, what a plan says of one is said of the machine."""

    def say(self, text: str, style: str | None = None, lines: bool = False) -> None:
        super().say(of_machine(text), style, lines)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        super().table(of_machine(title), [of_machine(name) for name in columns], rows)


def of_machine(text: str) -> str:
    for said, instead in (
        ("one of 1 GPUs", "this machine"),
        ("GPU-hours", "hours"),
        ("GPUs", "ranks"),
        ("GPU", "rank"),
    ):
        text = text.replace(said, instead)
    return text


def index_of(request: Request, world: int) -> IndexPlan | None:
    """The plan of the index, or None without --passages. world: number of GPUs, and so of machines that can share an
    index."""
    if not request.passages:
        return None
    setup, host = request.setup, INDEX_FRACTION * request.limits.host
    hosts = machines(world, request.limits.gpus_per_node)
    return plan_index(
        setup.retriever, request.passages, setup.work.passage, request.rates, setup.precision, host, hosts
    )


def models(setup: Setup) -> dict[str, Any]:
    found = {}
    for name in NAMES:
        trained, frozen = setup.parameters(name)
        activations = setup.activations(name)
        found[name] = {
            "name": setup.shape(name).name,
            "parameters": trained + frozen if name not in setup.lora else frozen,
            "trained": trained,
            "kb_per_token": activations.saved_per_token / 1e3,
        }
    return found


def model_table(setup: Setup) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            name,
            m["name"],
            f"{m['parameters'] / 1e6:,.1f}M",
            f"{m['trained'] / 1e6:,.1f}M",
            f"{m['kb_per_token']:,.0f} kB",
        ]
        for name, m in models(setup).items()
    ]
    return ["model", "", "parameters", "trained", "activations per token"], rows


def way_figures(found: list[Way], request: Request) -> list[dict[str, Any]]:
    figures: list[dict[str, Any]] = []
    for way in found:
        if way.setup is None:
            figures.append({"way": way.name, "gpus": None})
            continue
        plan, seconds = plan_memory(way.setup), step_time(way.setup, request.rates)
        rows = way.setup.work.batch * way.setup.work.accumulation
        figures.append(
            {
                "way": way.name,
                "gpus": way.setup.world,
                "stages": list(way.setup.stages),
                "gb": plan.peak / GB,
                "host_gb": plan.host / GB,
                "step_s": seconds.total,
                "queries_per_s": rows * way.setup.world / seconds.total,
            }
        )
    return figures


def way_table(found: list[Way], request: Request) -> tuple[list[str], list[list[str]]]:
    heads = ["way", "GPUs", "stages (retriever, generator)", "GB/GPU", "host GB/rank", "step s", "queries/s"]
    rows = []
    for f in way_figures(found, request):
        if f["gpus"] is None:
            rows.append([f["way"], "none fits", *["-"] * 5])
            continue
        rest = [f"{f['gb']:.1f}", f"{f['host_gb']:,.0f}", f"{f['step_s']:.2f}", f"{f['queries_per_s']:.1f}"]
        rows.append([f["way"], str(f["gpus"]), ", ".join(f["stages"]), *rest])
    return heads, rows


def stage_rows(best: Setup, request: Request) -> list[dict[str, Any]]:
    """One row for each stage of both engines, then for pairs of different stages; the other choices as in `best`."""
    pairs = [(s, s) for s in STAGES]
    pairs += [p for p in dict.fromkeys([best.stages, ("2", "3"), ("2", "3+offload")]) if p not in pairs]
    pairs = [pair for pair in pairs if best.device != "cpu" or "3+offload" not in pair]
    return [stage_row(replace(best, stages=pair), request) for pair in pairs]


def stage_row(setup: Setup, request: Request) -> dict[str, Any]:
    plan, traffic = plan_memory(setup), plan_traffic(setup)
    states = plan.states.values()
    return {
        "stages": list(setup.stages),
        "parameters": sum(s.weights + s.live for s in states) / GB,
        "gradients": sum(s.gradients for s in states) / GB,
        "optimizer": sum(s.masters + s.moments for s in states) / GB,
        "retriever_activations": plan.activations["retriever"] / GB,
        "generator_activations": plan.activations["generator"] / GB,
        "logits": plan.logits / GB,
        "peak": plan.peak / GB,
        "peak_phase": plan.peak_phase,
        "host": plan.host / GB,
        "sent_gb_a_step": traffic.total / GB,
        "step_s": step_time(setup, request.rates).total,
        "fits": request.limits.fits(setup),
    }


def stage_table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    keys = ["parameters", "gradients", "optimizer", "retriever_activations", "generator_activations", "logits"]
    keys += ["peak", "host", "sent_gb_a_step", "step_s"]
    heads = ["stages", "params", "grads", "optim", "act R", "act G", "logits", "peak", "host", "sent", "step s", "fits"]
    shown = []
    for row in rows:
        name = row["stages"][0] if len(set(row["stages"])) == 1 else ", ".join(row["stages"])
        figures = [f"{row[key]:.1f}" if row[key] < 1000 else f"{row[key]:,.0f}" for key in keys]
        shown.append([name, *figures, "yes" if row["fits"] else "no"])
    return heads, shown


def variant_rows(best: Setup, request: Request) -> list[dict[str, Any]]:
    """Rows with and without activation checkpointing, in one pass, and in two passes with chunks of several sizes."""
    cells = best.work.cells(best.world)
    sizes = dict.fromkeys([0, best.micro_cells, *(n for n in (64, 8) if n < cells)])
    pairs = [(again, size) for again in (False, True) for size in sizes]
    return [
        {"checkpointing": again, "micro_cells": size}
        | stage_row(replace(best, checkpointing=again, micro_cells=size), request)
        for again, size in pairs
    ]


def variant_table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    heads = ["generator_backward", "checkpointing", "act G", "logits", "peak", "sent", "step s", "fits"]
    shown = []
    for row in rows:
        way = f"exact, {row['micro_cells']} cells" if row["micro_cells"] else "one_pass"
        keys = ("generator_activations", "logits", "peak", "sent_gb_a_step", "step_s")
        figures = [f"{row[key]:,.1f}" for key in keys]
        shown.append([way, "on" if row["checkpointing"] else "off", *figures, "yes" if row["fits"] else "no"])
    return heads, shown


def show_step(best: Setup, request: Request, console: Console) -> None:
    step, plan, rates = step_time(best, request.rates), plan_memory(best), request.rates
    rows = best.work.batch * best.work.accumulation * best.world
    tflops = rates.flops(best.precision) / rates.mfu / 1e12
    console.say(
        f"step: {rows} queries in {step.total:.2f} s ({step.compute:.2f} computing, {step.communication:.2f} sending, "
        f"{step.optimizer + step.offload:.2f} updating), {rows / step.total:.1f} queries/s, "
        f"{1e6 / rows * step.total / 3600 * best.world:,.0f} GPU-hours per million queries"
    )
    console.say(
        f"assumed: {rates.mfu:.0%} of {rates.gpu.name}'s {tflops:,.3g} TFLOP/s "
        f"in {best.precision}, {rates.sends(best.world) / GB:.0f} GB/s per GPU, every text at its maximum length; "
        f"the peak is in the {plan.peak_phase}"
    )


def recommended(best: Setup, request: Request, reasons: dict[str, str], index: IndexPlan | None) -> dict[str, Any]:
    return {
        "gpu": request.rates.gpu.name,
        "gpus": best.world,
        "flags": training_flags(best, index, request.data),
        "command": command_line(best, request.limits.gpus_per_node, index, request.data),
        "reasons": reasons,
        "phases_gb": {name: value / GB for name, value in plan_memory(best).phases.items()},
        "step": asdict(step_time(best, request.rates)),
        "sent": asdict(plan_traffic(best)),
    }


def index_table(index: IndexPlan, request: Request, world: int) -> tuple[str, list[str], list[list[str]]]:
    rows = [
        [name, f"{size / GB:,.2f}", f"{size / index.passages:,.0f}", f"{RECALL[name]:.2f}",
         "yes" if size <= INDEX_FRACTION * request.limits.host else "no"]
        for name, size in index.sizes.items()
    ]  # fmt: skip
    hours = index.encode_gpu_hours
    title = f"Index of {index.passages:,} passages; encoded in {hours:,.2f} GPU-hours, {duration(3600 * hours / world)}"
    heads = ["index", "GB", "bytes per passage", "recall@10 (of 100,000)", f"fits {INDEX_FRACTION:.0%} of a host"]
    return title, heads, rows
