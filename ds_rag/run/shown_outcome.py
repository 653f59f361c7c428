"""What a run prints at its end: figures, samples, its verdict, and where the report is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_rag.evaluation.intervals import show_interval
from ds_rag.evaluation.metrics import without_repeats
from ds_rag.evaluation.signature import unlike
from ds_rag.run.active_run import Run
from ds_rag.run.lexical_table import compared, lexical_table
from ds_rag.runtime.console import EMPTY, Console


def say_gate(run: Run) -> None:
    """Says how many of the queries read in training taught nothing because of `--gate_gain` and `--gate_margin`."""
    objective, state = run.config.objective, run.state
    if not any(name in run.parts.objective.spec.settings for name in ("gate_gain", "gate_margin")):
        return
    limits = {"gate_gain": objective.gate_gain, "gate_margin": objective.gate_margin}
    given = " ".join(f"--{name} {value:g}" for name, value in limits.items() if value is not None)
    if given:
        read = state.step * run.parts.loader.global_batch
        run.console.say(f"gate       {state.gated:,} of {read:,} queries taught nothing ({given})")


def show_outcome(results: dict[str, Any], report: Path, console: Console) -> None:
    """Prints the metrics before and after training, the sample questions, and the path of the report."""
    before, after, known = results["before"], results["after"], results["evaluation"]
    if rows := figure_rows(before, after, known):
        console.table("held-out queries", ["metric", "before", "after", "95 % interval", "n"], rows)
        if known["after"].get("signature"):
            console.say(f"signature  {known['after']['signature']['line']}")
        if warning := unlike(known):
            console.say(f"warning: {warning}", style="yellow")
    if table := lexical_table(results):
        console.table("retrieval, beside a search by words (BM25)", ["ranking", *compared(results)], table)
    for sample in results["samples"]:
        console.say("")
        console.say(f"question   {sample['query']}")
        console.say(
            f"retrieved  {sample['passage'][:300]}{'   (not the labelled one)' * (sample['retrieved_gold'] is False)}"
        )
        console.say(f"answer     {sample['answer'] or EMPTY}   (wanted: {' | '.join(sample['gold'])})")
    console.say("")
    show_verdict(results["verdict"], console)
    console.say(f"report     {report}   ({results['steps']} steps, {results['seconds']:.0f} s in all)")


def show_verdict(found: dict[str, Any], console: Console) -> None:
    """Prints whether training helped, what held it back, and the next commands."""
    for head, lines in (("verdict", found["lines"]), ("held back", found["held_back"])):
        for n, line in enumerate(lines):
            console.say(f"{head if n == 0 else '':10} {line}")
    for n, (command, purpose) in enumerate(found["next"]):
        console.command("next" if n == 0 else "", command, purpose)


def figure_rows(before: dict[str, float], after: dict[str, float], known: dict[str, Any]) -> list[list[str]]:
    """metric, before, after, the interval of `after`, n; the figures that need no labels last. known: `evaluation` of
    results.json."""
    before = before | known["before"].get("without_labels", {})
    after = after | known["after"].get("without_labels", {})
    ends, counts = known["after"].get("intervals", {}), known["after"].get("n", {})
    names = [name for name in without_repeats(before, after) if name in after]
    return [
        [
            name,
            f"{before[name]:.3f}" if name in before else "-",
            f"{after[name]:.3f}",
            show_interval(ends.get(name)),
            str(counts.get(name, "-")),
        ]
        for name in names
    ]
