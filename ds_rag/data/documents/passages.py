"""Passages of a document: sections below one heading, filled with blocks as long as these fit.

A short section joins its neighbour below the same heading, and a short rest takes text from the passage before it. What
is too long is cut (`splitting.py`). No passage has more tokens than `Sizes.most`, with its title.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ds_rag.data.documents.document import LINE, TEXT, Block, Document, place
from ds_rag.data.documents.sections import join_short, sections_of, titled
from ds_rag.data.documents.sizes import SAMPLE, Frame, Sizes, joined
from ds_rag.data.documents.splitting import spans_of


class Piece(NamedTuple):
    """A block, or a part of one. numbers: as a block has them. glue: what stands between it and the piece before."""

    text: str
    first: int
    last: int
    kind: str = TEXT
    numbers: Sequence[int] = ()
    glue: str = "\n\n"


@dataclass(frozen=True)
class Cutting:
    """overlap: tokens of a passage that the next below the same heading begins with. min_tokens: of a passage's text,
    below which it joins a neighbour; 0: never."""

    overlap: int = 0
    min_tokens: int = 32


class Chunk(NamedTuple):
    """A passage without its id. place: "" where none is known. tokens: exactly, with those around the text."""

    title: str
    text: str
    place: str
    tokens: int = 0


def chunks_of(document: Document, sizes: Sizes, cutting: Cutting) -> list[Chunk]:
    """The passages of a document in its order; together their texts are its text, where nothing overlaps."""
    found = []
    ratio = sizes.ratio(beginning(document))
    for section in join_short(sections_of(document), document, sizes, cutting.min_tokens):
        frame, blocks = titled(section, document, sizes, ratio)
        groups = fill(list(pieces_of(blocks, document.unit, frame, cutting.overlap)), frame, cutting.overlap)
        if cutting.min_tokens and not cutting.overlap:
            groups = lengthen_rest(groups, frame, cutting.min_tokens)
        body = ""
        for group in groups:
            own = text_of(group)
            lead = tail_of(body, own, group[0].glue, frame, cutting.overlap) if body and cutting.overlap else ""
            where = place(document.unit, min(p.first for p in group), max(p.last for p in group))
            found.append(Chunk(frame.title, lead + own, where if group[-1].last else ""))
            body = own
    return list(measured(found, sizes))


def beginning(document: Document) -> str:
    """Its text as far as `Sizes.ratio` looks at it."""
    texts, length = [], 0
    for block in document.blocks:
        texts.append(block.text)
        length += len(block.text)
        if length > SAMPLE:
            break
    return "\n\n".join(texts)


def measured(chunks: Sequence[Chunk], sizes: Sizes) -> Iterator[Chunk]:
    """The chunks with their tokens, as counted exactly; those that are longer than a sum of words said are cut."""
    counts = sizes.count([joined(chunk.title, chunk.text) for chunk in chunks])
    for chunk, tokens in zip(chunks, counts, strict=True):
        if tokens <= sizes.most:
            yield chunk._replace(tokens=tokens)
            continue

        def exact(text: str, title: str = chunk.title) -> int:
            return sizes.count([joined(title, text)])[0]

        for begin, end in spans_of(chunk.text, TEXT, exact, sizes.most):
            yield chunk._replace(text=chunk.text[begin:end], tokens=exact(chunk.text[begin:end]))


def pieces_of(blocks: Sequence[Block], unit: str, frame: Frame, overlap: int) -> Iterator[Piece]:
    """Each block, or its parts where it does not fit into a passage."""
    for block in blocks:
        by_line = unit == LINE and block.text.count("\n") == block.last - block.first
        numbers = block.numbers or (range(block.first, block.last + 1) if by_line else ())
        piece = Piece(block.text, block.first, block.last, block.kind, numbers)
        if frame.fits(block.text, overlap):
            yield piece
        else:
            yield from parts_of(piece, frame, frame.most - overlap)


def parts_of(piece: Piece, frame: Frame, most: int) -> Iterator[Piece]:
    """The parts of a piece that fit into `most` tokens, each with its own lines where they are known."""
    text, before, line = piece.text, 0, 0
    for begin, end in spans_of(text, piece.kind, frame.count, most):
        glue = text[before:begin] if before else piece.glue
        part = piece._replace(text=text[begin:end], glue=glue)
        if piece.numbers:
            line += text.count("\n", before, begin)
            numbers = piece.numbers[line : line + 1 + part.text.count("\n")]
            part = part._replace(numbers=numbers, first=numbers[0], last=numbers[-1])
            line += len(numbers) - 1
        yield part
        before = end


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text if n == 0 else piece.glue + piece.text for n, piece in enumerate(pieces))


def fill(pieces: Sequence[Piece], frame: Frame, overlap: int) -> list[list[Piece]]:
    """The pieces in groups, each as large as fits."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        if groups and frame.fits(text_of([*groups[-1], piece]), overlap):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def lengthen_rest(groups: list[list[Piece]], frame: Frame, least: int) -> list[list[Piece]]:
    """The last group, where it is shorter than `least` tokens, takes pieces from the end of the group before it, which
    are cut in half for that if they are text."""
    bare = frame.bare
    if len(groups) < 2 or frame.count(text_of(groups[-1])) - bare >= least:
        return groups
    both = [*groups[-2], *groups[-1]]
    half = (frame.count(text_of(both)) + bare) // 2
    fine = [
        part
        for piece in both
        for part in (parts_of(piece, frame, max(half, bare + least)) if piece.kind == TEXT else [piece])
    ]
    best, split = frame.count(text_of(groups[-1])), len(groups[-2])
    chosen = both
    for pieces in (both, fine):
        for n in range(1, len(pieces)):
            one, two = frame.count(text_of(pieces[:n])), frame.count(text_of(pieces[n:]))
            if max(one, two) <= frame.most and min(one, two) > best:
                best, split, chosen = min(one, two), n, pieces
        if best - bare >= least:
            break
    return [*groups[:-2], chosen[:split], chosen[split:]]


def tail_of(before: str, own: str, glue: str, frame: Frame, overlap: int) -> str:
    """The end of the text before, in whole words, with at most `overlap` tokens, and what follows it; "" where nothing
    fits before `own`."""
    words = [match.start() for match in re.finditer(r"\S+", before)]
    low, high = 0, len(words)  # the number of words: bisection
    while low < high:
        middle = (low + high + 1) // 2
        tail = before[words[-middle] :]
        if frame.count(tail) - frame.bare <= overlap and frame.fits(tail + glue + own):
            low = middle
        else:
            high = middle - 1
    return before[words[-low] :] + glue if low else ""
