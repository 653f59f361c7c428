"""The figures of an audit on the console."""

from __future__ import annotations

from typing import Any

from ds_rag.evaluation.audit import POSTERIOR, READER, RETRIEVER
from ds_rag.evaluation.intervals import show_interval
from ds_rag.runtime.console import Console


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def show(result: dict[str, Any], console: Console) -> None:
    """Tables, the suggested settings, and the verdict. result: as the JSON has it."""
    setting, first = result["setting"], result["gold_first"]
    right = "labelled" if setting["labels_used"] else "answer-containing"
    rows = [
        [
            name,
            number(of["gold among them"]["mean"]),
            show_interval(of["gold among them"]["interval"]),
            number(of["auc"]),
            number(of["as found"]["mean"]),
            str(of["gold among them"]["n"]),
        ]
        for name, of in first.items()
    ]
    source = f"{setting['candidates']} candidates from {setting['candidates_from']}"
    console.table(
        f"{right} passage first: {setting['rows']} rows of {setting['documents']} documents, {source}",
        ["picked by", "gold among them", "95 % interval", "AUC", "as found", "n"],
        rows,
    )
    shown = [name for name in first if name in (RETRIEVER, POSTERIOR) or name.startswith(READER)]
    console.table(
        "by K, gold among them",
        ["K", "found", *shown],
        [[str(x["K"]), number(x["gold found"]), *cells(x, shown)] for x in result["by_K"]],
    )
    console.table(
        "by tokens of the answer, gold among them",
        ["tokens", "n", *shown],
        [[x["tokens"], str(x["n"]), *cells(x, shown)] for x in result["by_length"]],
    )
    alphas = list(result["by_temperature"][0]["gold first"])
    console.table(
        "posterior with G / |y|^alpha, gold among them",
        ["temperature", *alphas],
        [[f"{x['temperature']:.3g}", *cells(x, alphas)] for x in result["by_temperature"]],
    )
    show_gains(result["gains"], console)
    show_suggested(result, console)
    console.say("verdict: " + result["verdict"]["lines"][0])
    for line in result["verdict"]["lines"][1:]:
        console.say(f"  {line}")


def cells(line: dict[str, Any], names: list[str]) -> list[str]:
    return [number(line["gold first"][name]) for name in names]


def show_gains(gains: dict[str, Any], console: Console) -> None:
    sets = {**{f"best gain, {name}": x for name, x in gains["best"].items()}, "distance to the second": gains["margin"]}
    levels = next((list(x) for x in sets.values() if x), [])
    if levels:
        console.table(
            "gain of an answer's token over no passage, nats",
            ["quantiles over rows", *(f"{float(level):.0%}" for level in levels)],
            [[name, *(f"{x[level]:.2f}" if x else "-" for level in levels)] for name, x in sets.items()],
        )


def show_suggested(result: dict[str, Any], console: Console) -> None:
    found = result["suggested"]
    if result["agreement"] is not None:
        console.say(f"prior and suggested posterior agree on the first passage: {result['agreement']:.2f} of rows")
    words = [f"{name} {value:.3g}" for name, value in found.items() if value is not None]
    console.say("suggested: " + ", ".join(words))
