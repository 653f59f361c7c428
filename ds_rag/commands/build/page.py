"""FOLDER/report.html: the verdict, the rankings, and the stages of a build, with a link to the report of its run."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ds_rag.commands.build.options import Wanted
from ds_rag.commands.build.state import State
from ds_rag.commands.build.summary import Summary
from ds_rag.run.html_report import STYLE, escape
from ds_rag.runtime.atomic_files import write_complete
from ds_rag.runtime.console import duration

COLOURS = {"better": "good", "worse": "bad"}


def write_page(wanted: Wanted, state: State, summary: Summary, counts: dict[str, Any]) -> Path:
    """Writes the page, and returns its path. counts: of rows.json."""
    name = escape(wanted.out.resolve().name)
    first, *others = summary.lines
    body = [
        f"<h1>{name}</h1>",
        f'<p class="card {COLOURS.get(summary.verdict, "")}"><b>{escape(first)}</b></p>',
        *(f'<p class="dim">{escape(line)}</p>' for line in others),
        section("Rankings: mean (95 % interval)", table(*summary.table())),
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


def section(title: str, content: str) -> str:
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{content}\n</section>" if content else ""


def rows_of(counts: dict[str, Any]) -> str:
    parts = {"training": counts.get("train"), "held out": counts.get("eval")}
    rows = [[name, str(part["rows"]), str(part["labelled"])] for name, part in parts.items() if part]
    if counts.get("lost"):
        rows.append(["left out, their passages are gone", str(counts["lost"]), ""])
    return table(["rows", "number", "labelled"], rows)


def stages(state: State) -> str:
    rows = [
        [name, entry.state, duration(entry.seconds + entry.before), entry.command]
        for name, entry in state.stages.items()
    ]
    return table(["stage", "state", "time", "command"], rows, code=True)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], code: bool = False) -> str:
    """The first column is text, the others are numbers; with `code` the last one is a command line."""
    kinds = ["", *["number"] * (len(heads) - 1 - code), *["code"] * code]
    head = "".join(f'<th class="{kind}">{escape(text)}</th>' for text, kind in zip(heads, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f'<td class="{k}">{escape(c)}</td>' for c, k in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="card scroll"><table><tr>{head}</tr>{body}</table></div>' if body else ""
