"""Our docstrings are plain text; Sphinx reads reStructuredText. This extension translates the one into the other.

- `name` in backticks is code, here two backticks.
- A paragraph whose lines begin `name: what it is` is a list of definitions.
- A paragraph under a line such as `Args:` or `Returns:` is a section with that title.
- `>>>` begins an example, shown as it is.
- Any other paragraph whose later lines are indented is a table or a formula, shown as it is.
- Everything else is prose, in which stars, bars and underscores mean themselves.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from sphinx.application import Sphinx

NAME = r"[`*]*[A-Za-z_][\w.`*-]*"
TERM = re.compile(rf"({NAME}(?:, {NAME})*): +(\S.*)")


def as_prose(text: str) -> str:
    """One line of reStructuredText that shows `text`: code between backticks, all other marks escaped."""
    parts = [part for part in re.split(r"(`+[^`]+`+)", text) if part]
    shown = [f"``{p.strip('`')}``" if p.startswith("`") else re.sub(r"([\\*_|`])", r"\\\1", p) for p in parts]
    return "\\ ".join(shown)  # an escaped space shows nothing, and lets code touch a word or a full stop


def definitions(lines: list[str]) -> list[tuple[str, str]] | None:
    """(name, description) where every line begins one or continues, further indented, the one before; else None."""
    margin = len(lines[0]) - len(lines[0].lstrip())
    found: list[tuple[str, str]] = []
    for line in lines:
        match = TERM.fullmatch(line.strip())
        if len(line) - len(line.lstrip()) > margin and found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        elif match:
            found.append((match[1], match[2]))
        else:
            return None
    return found


def translate(lines: list[str]) -> list[str]:
    """The lines of a docstring as lines of reStructuredText."""
    result: list[str] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        block = paragraph.splitlines()
        if not paragraph.strip():
            continue
        if re.fullmatch(r"[A-Z]\w+:", block[0]) and all(line.startswith("    ") for line in block[1:]):
            result += [
                f".. rubric:: {block[0][:-1]}",
                "",
                *translate(textwrap.dedent("\n".join(block[1:])).splitlines()),
            ]
        elif block[0].lstrip().startswith(">>>"):
            result += ["::", "", *(f"    {line}" for line in block)]
        elif block[0].startswith("- ") and all(line.startswith(("- ", "  ")) for line in block):
            items = re.split(r"\n(?=- )", paragraph)
            result += ["- " + as_prose(" ".join(item.split())[2:]) for item in items]
        elif found := definitions(block):
            for name, text in found:
                result += [as_prose(name), "    " + as_prose(text)]
        elif any(line.startswith("  ") for line in block):
            result += ["::", "", *(f"    {line}" for line in block)]
        else:
            result.append(as_prose(" ".join(line.strip() for line in block)))
        result.append("")
    return result


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = translate(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
