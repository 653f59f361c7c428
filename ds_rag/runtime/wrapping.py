"""Lines of text for a terminal of a given width, broken between words alone."""

from __future__ import annotations

import re
import textwrap

from rich.cells import cell_len

# What stands before a line's text: a margin, a label ("verdict    ", "  found:    "), each with its blanks.
LEAD = re.compile(r" *(?:\S+(?: \S+){0,3} {2,})?")
LONGEST_LEAD = 24  # cells by which further lines are indented at most


def wrapped(text: str, width: int) -> str:
    """Each line of the text in lines of at most `width` cells, the further ones indented to where its text begins. A
    word that is longer, as a path may be, is kept whole."""
    return "\n".join(_one(line, width) for line in text.split("\n"))


def _one(line: str, width: int) -> str:
    if cell_len(line) <= width:
        return line
    lead = len(LEAD.match(line)[0])  # type: ignore[index]  # it matches any line
    margin = " " * (lead if 0 < lead <= min(LONGEST_LEAD, width // 2) else 2)
    lines = textwrap.wrap(
        line, width, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    )
    return "\n".join(lines)
