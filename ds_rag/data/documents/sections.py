"""Sections of a document: what stands below one heading, short ones joined; and the title that their passages have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from ds_rag.data.documents.document import Block, Document
from ds_rag.data.documents.sizes import TITLE, Frame, Sizes

BETWEEN = " > "


@dataclass(frozen=True)
class Section:
    """headings: above all of its blocks."""

    headings: tuple[str, ...]
    blocks: tuple[Block, ...]


def sections_of(document: Document) -> list[Section]:
    several = groupby(document.blocks, key=lambda block: block.headings)
    return [Section(headings, tuple(blocks)) for headings, blocks in several]


def join_short(sections: Sequence[Section], document: Document, sizes: Sizes, least: int) -> list[Section]:
    """Sections of less than `least` tokens joined with the next one, else with the one before, where both are below one
    heading and fit into a passage together."""
    found: list[Section] = []
    for section in sections:
        if found and least and (both := joined(found[-1], section)) is not None:
            shorter = min(tokens(found[-1], sizes), tokens(section, sizes))
            if shorter < least and whole_fits(both, document, sizes):
                found[-1] = both
                continue
        found.append(section)
    return found


def joined(one: Section, other: Section) -> Section | None:
    """Two sections as one below the heading that they share: siblings, or a section and one directly inside it. The
    headings that only one of them has become lines of the text. None where they are further apart."""
    depth = 0
    while one.headings[: depth + 1] == other.headings[: depth + 1] and depth < len(one.headings):
        depth += 1
    if len(one.headings) - depth > 1 or len(other.headings) - depth > 1:
        return None
    shared = one.headings[:depth]
    blocks = [block for section in (one, other) for block in below(section, depth)]
    return Section(shared, tuple(replace(block, headings=shared) for block in blocks))


def below(section: Section, depth: int) -> tuple[Block, ...]:
    """The blocks, after a line with the heading that is deeper than `depth`."""
    if len(section.headings) <= depth:
        return section.blocks
    first = section.blocks[0].first
    return Block(section.headings[-1], section.headings, first, first), *section.blocks


def tokens(section: Section, sizes: Sizes) -> int:
    """Of its text, without the title."""
    return sizes.about(text_of(section))


def whole_fits(section: Section, document: Document, sizes: Sizes) -> bool:
    frame, blocks = titled(section, document, sizes)
    return frame.fits(text_of(replace(section, blocks=tuple(blocks))))


def text_of(section: Section) -> str:
    return "\n\n".join(block.text for block in section.blocks)


def titled(section: Section, document: Document, sizes: Sizes, ratio: float = 1.0) -> tuple[Frame, Sequence[Block]]:
    """(the frame with the section's title, its blocks): "Document title > Heading > Subheading".

    A title that would take more than its part of a passage loses the headings in the middle, then the document's title,
    then words; what is cut of the innermost heading is then text before the blocks.
    """
    parts = [document.title, *section.headings]
    parts = [part for n, part in enumerate(parts) if part and (n == 0 or part != parts[n - 1])] or [""]
    room = (sizes.most - sizes.bare) // TITLE
    for choice in (*([parts[0], *parts[n:]] for n in range(1, len(parts))), parts[-1:]):
        title = BETWEEN.join(choice)
        if sizes.about(title) <= room:
            return Frame(sizes, title, ratio), section.blocks
    words = parts[-1].split()
    while words and sizes.about(" ".join(words)) > room:
        words = words[: len(words) // 2]
    first = section.blocks[0].first
    return Frame(sizes, " ".join(words), ratio), (Block(parts[-1], (), first, first), *section.blocks)
