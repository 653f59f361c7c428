"""The settings of a run: those that were changed first, then, folded, those left at their defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from ds_rag.config import SECTIONS
from ds_rag.run.report.parts import escape
from ds_rag.runtime import json_files


def settings_html(config: Mapping[str, Any]) -> str:
    defaults = {f.name: f.default for section in SECTIONS.values() for f in fields(section)}
    flat = {key: value for key, value in flattened(config) if key != json_files.VERSION}
    changed = {key: value for key, value in flat.items() if key not in defaults or value != defaults[key]}
    left = {key: value for key, value in flat.items() if key not in changed}
    page = f'<div class="card scroll settings">{rows(changed)}</div>' if changed else ""
    if left:
        head = f"<summary>{len(left)} left at their defaults</summary>"
        page += f'<details class="card scroll settings defaults">{head}{rows(left)}</details>'
    return page


def rows(values: Mapping[str, Any]) -> str:
    cells = [(key, json.dumps(value, ensure_ascii=False)) for key, value in values.items()]
    return f"<table>{''.join(f'<tr>{one(key)}{one(value)}</tr>' for key, value in cells)}</table>"


def one(text: str) -> str:
    return f'<td class="code">{escape(text)}</td>'


def flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
