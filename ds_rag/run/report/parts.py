"""What all sections of the report are made of: escaped text, tables, cards."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from ds_rag.run.metrics_file import is_number
from ds_rag.runtime.credentials import printable


def escape(text: object) -> str:
    """`text` escaped for HTML, without credentials and control characters: some of these reverse the direction of text,
    and a report may be viewed in a terminal."""
    return html.escape(printable(str(text), keep="\n\t"))


def section(title: str, content: str, id_: str = "") -> str:
    """Empty where there is no content."""
    place = f' id="{id_}"' if id_ else ""
    return f"<section{place}>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def card(content: str) -> str:
    return f'<div class="card scroll">{content}</div>'


def table(titles: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> str:
    """The first column is of names, the others are of numbers. Texts are escaped here."""
    head = "".join(f"<th scope=col{' class=number' * (n > 0)}>{escape(title)}</th>" for n, title in enumerate(titles))
    lines = [
        f"<tr><td>{escape(name)}</td>{''.join(f'<td class=number>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    ]
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{said}<tr>{head}</tr>{''.join(lines)}</table>"


def shown(value: object) -> str:
    return f"{value:.3f}" if is_number(value) else "-"


def number(value: object) -> float | None:
    return float(value) if is_number(value) else None  # type: ignore[arg-type]


def dict_of(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def list_of(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
