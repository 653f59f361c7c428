"""The reasons for a recommended setup, as text: each choice is compared with a simpler or other one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ds_rag.commands.plan.advice import SIMPLER, SPEEDUP, WORLDS, Fixed, Limits, Way, least_memory
from ds_rag.commands.plan.duration import Rates, step_time
from ds_rag.commands.plan.memory import plan_memory
from ds_rag.commands.plan.setup import NAMES, Setup

GB = 1e9


def explain(setup: Setup, fixed: Fixed, rates: Rates, limits: Limits) -> dict[str, str]:
    """Choice -> its reason."""
    offload = "offload" in setup.stages[1]
    reasons = {"GPUs": of_world(setup, fixed, limits, offload)}
    for n, name in enumerate(NAMES):
        reasons[f"{name}'s stage {setup.stages[n]}"] = of_stage(setup, n, rates, limits)
    reasons["checkpointing " + ("on" if setup.checkpointing else "off")] = of_checkpointing(setup, rates, limits)
    reasons["pass"] = of_pass(setup, rates, limits)
    reasons["retriever_chunk"] = of_retriever_chunk(setup, limits)
    reasons["candidates"] = of_candidates(setup)
    if setup.lora:
        trained, frozen = setup.parameters(setup.lora[0])
        reasons["LoRA"] = f"trains {trained / 1e6:,.0f}M parameters; the other {frozen / 1e9:,.2f}e9 are frozen"
    return {name: f"{text} (as given)" if given(name, fixed) else text for name, text in reasons.items()}


def of_others(found: Sequence[Way], rates: Rates) -> dict[str, str]:
    """Why the first way that fits is recommended and not the others (offload, LoRA): the GPUs that each needs, and its
    speed."""
    best = next((way for way in found if way.setup is not None), None)
    if best is None or best.setup is None:
        return {}
    reasons = {}
    for way in found:
        if way is best:
            continue
        if way.setup is None:
            reasons[way.name] = "does not fit on any number of GPUs" if found.index(way) > 0 else "does not fit"
            continue
        mine, its = (rate(s, rates) for s in (best.setup, way.setup))
        gpus = f"{way.setup.world} GPU" + ("s" if way.setup.world > 1 else "")
        less = "not needed" if found.index(way) > found.index(best) else "not possible"
        reasons[way.name] = f"{less}; it needs {gpus}, at {its:.3g} queries/s on each instead of {mine:.3g}"
    return reasons


def rate(setup: Setup, rates: Rates) -> float:
    """Queries per second of each GPU."""
    return setup.work.batch * setup.work.accumulation / step_time(setup, rates).total


def given(name: str, fixed: Fixed) -> bool:
    """Has the user made this choice?"""
    key = {"GPUs": "world", "pass": "pass", "retriever_chunk": "retriever_chunk", "candidates": "candidates"}.get(name)
    if "stage" in name:
        key = "stages"
    if name.startswith("checkpointing"):
        key = "checkpointing"
    return key is not None and key in fixed


def against(other: Setup, setup: Setup, rates: Rates, limits: Limits) -> str:
    """The cost of `other` compared with `setup`: its memory if it does not fit, else its time."""
    peak = plan_memory(other).peak
    if peak > limits.usable:
        return f"would take {peak / GB:.3g} GB of {limits.usable / GB:.3g}"
    if not limits.fits(other):
        return f"would take {plan_memory(other).host / GB:,.3g} GB of the host for each rank"
    mine, its = step_time(setup, rates).total, step_time(other, rates).total
    if its > 1.005 * mine:
        return f"would fit, but a step takes {its:.3g} s instead of {mine:.3g}"
    return "would be as fast" if its >= SPEEDUP * mine else f"would take {its:.3g} s a step instead of {mine:.3g}"


def of_world(setup: Setup, fixed: Fixed, limits: Limits, offload: bool) -> str:
    smaller = [w for w in WORLDS if w < setup.world]
    if not smaller:
        return "one is enough"
    before = replace(setup, world=smaller[-1])
    least = least_memory(before, fixed, offload)
    if least <= limits.usable:
        return f"on {smaller[-1]} it would take at least {least / GB:.3g} GB per GPU"
    return f"on {smaller[-1]} it would take at least {least / GB:.3g} GB per GPU, of {limits.usable / GB:.3g}"


def of_stage(setup: Setup, which: int, rates: Rates, limits: Limits) -> str:
    stage = setup.stages[which]
    simpler = SIMPLER.get(stage)
    if simpler is None:
        return "nothing is sharded, so nothing is gathered"
    if simpler == "0" and setup.precision != "fp32":
        return f"the lowest usable one: stage 0 would accumulate gradients in {setup.precision}"
    stages = (simpler, setup.stages[1]) if which == 0 else (setup.stages[0], simpler)
    text = f"stage {simpler} {against(replace(setup, stages=stages), setup, rates, limits)}"
    return (
        f"one DeepSpeed file serves both engines; {text}" if "as fast" in text and len({*setup.stages}) == 1 else text
    )


def of_checkpointing(setup: Setup, rates: Rates, limits: Limits) -> str:
    other = replace(setup, checkpointing=not setup.checkpointing)
    return f"{'without' if setup.checkpointing else 'with'} it {against(other, setup, rates, limits)}"


def of_pass(setup: Setup, rates: Rates, limits: Limits) -> str:
    if setup.stores_scores:
        return "the generator's scores are stored: steps compute none"
    if setup.frozen == "generator":
        return "the generator only scores: chunks without a graph"
    if not setup.micro_cells:
        return (
            f"one pass over all {setup.work.cells(setup.world)} cells fits, and is a quarter less work than two passes"
        )
    text = f"one pass {against(replace(setup, micro_cells=0), setup, rates, limits)}"
    sharded = setup.stages[1] in ("2", "3", "3+offload") and setup.world > 1
    return f"{text}; chunks of {setup.micro_cells} cells" + (
        f" reduce gradients {setup.chunks} times per micro-batch" if sharded and setup.chunks > 1 else ""
    )


def of_retriever_chunk(setup: Setup, limits: Limits) -> str:
    if not setup.retriever_chunk:
        return "all texts fit at once"
    peak, texts = plan_memory(replace(setup, retriever_chunk=0)).peak, setup.work.retriever().texts
    return f"all {texts:.0f} texts at once would take {peak / GB:.3g} GB of {limits.usable / GB:.3g}"


def of_candidates(setup: Setup) -> str:
    """What the candidates cost: the tokens that the generator reads, and those with twice as many candidates."""
    work, k = setup.work, setup.work.per_query(setup.world)
    load = work.generator(setup.world)
    if not work.shared:
        return f"{k} of {work.pool(setup.world)} passages: each cell is a separate sequence"
    more = replace(work, candidates=2 * k).generator(setup.world) if 2 * k <= work.pool(setup.world) else None
    text = f"{k} of the pool's {work.pool(setup.world)}: the generator reads {load.tokens:,.0f} tokens per micro-batch"
    return text + (f"; {2 * k} would be {more.tokens / load.tokens:.2f} times as many" if more else "")
