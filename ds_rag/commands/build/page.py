"""FOLDER/report.html: the verdict, the rankings, and the stages of a build, with a link to the report of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_rag.commands.build.options import Wanted
from ds_rag.commands.build.stages import read
from ds_rag.commands.build.state import State
from ds_rag.commands.build.summary import Summary
from ds_rag.run.report.parts import card, escape, section, table
from ds_rag.run.report.style import STYLE
from ds_rag.runtime.atomic_files import write_complete
from ds_rag.runtime.console import duration


def write_page(wanted: Wanted, state: State, summary: Summary, counts: dict[str, Any]) -> Path:
    """Writes the page, and returns its path. counts: of rows.json."""
    name, (first, *others) = escape(wanted.out.resolve().name), summary.lines
    said = "".join(f"<li>{escape(line)}</li>" for line in others)
    body = [
        f"<h1>{name}</h1>",
        f'<div class="card verdict {escape(summary.kind)}"><p>{escape(first)}</p><ul>{said}</ul></div>',
        section("Rankings", rankings(summary)),
        section("Written questions", "" if wanted.rows else filters(read(wanted.filters) or {})),
        section("Rows", rows_of(counts)),
        section("Stages", stages(state)),
        '<p><a href="run/report.html">The report of the training</a></p>',
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: build report</title>\n<style>{STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )
    file = wanted.out / "report.html"
    write_complete(file, page)
    return file


def rankings(summary: Summary) -> str:
    heads, rows = summary.table()
    about = f"mean (95 % interval) over {summary.questions:,} held-out questions"
    return card(table(heads, rows, about)) if rows else ""


def filters(found: dict[str, Any]) -> str:
    """A row for each filter: how many questions came to it, and how many it rejected. found: of `ds-rag qa-gen`."""
    rows = [[each["filter"], each["read"], each["rejected"]] for each in found.get("filters") or ()]
    return (
        card(table(["filter", "questions", "rejected"], [*rows, ["kept", found.get("kept", ""), ""]])) if rows else ""
    )


def rows_of(counts: dict[str, Any]) -> str:
    parts = {"training": counts.get("train"), "held out": counts.get("eval")}
    rows = [[name, part["rows"], part["labelled"]] for name, part in parts.items() if part]
    if counts.get("lost"):
        rows.append(["left out, their passages are gone", counts["lost"], ""])
    return card(table(["rows", "number", "labelled"], rows)) if rows else ""


def stages(state: State) -> str:
    """State and time of each, and below them the command lines."""
    rows = [[name, entry.state, duration(entry.seconds + entry.before)] for name, entry in state.stages.items()]
    lines = "".join(f"<p><code>{escape(entry.command)}</code></p>" for entry in state.stages.values())
    return card(table(["stage", "state", "time"], rows)) + lines if rows else ""
