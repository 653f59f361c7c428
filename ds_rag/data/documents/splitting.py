"""Cuts a text that is too long for a passage, by semchunk, which measures in tokens: at the ends of paragraphs and
lines, then of sentences, then between words. Code and tables are cut at the ends of lines while these fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from ds_rag.data.documents.document import TEXT
from ds_rag.data.documents.sizes import WIDEST

WINDOW = 50_000  # characters that are cut at once: a bound on memory
Span = tuple[int, int]  # begin and end, in characters


def spans_of(text: str, kind: str, count: Callable[[str], int], most: int) -> list[Span]:
    """Parts of a text with at most `most` tokens each; between them are only blanks. count: tokens of a part."""
    readable = unwrapped(text) if kind == TEXT else text
    parts = [span for window in windows(readable) for span in _cut(readable, window, count, most)]
    if readable is not text:  # to some tokenizers a line's end is longer than a blank
        parts = [half for span in parts for half in _halved(text, span, count, most)]
    return packed(text, parts, count, most)


def packed(text: str, spans: list[Span], count: Callable[[str], int], most: int) -> list[Span]:
    """Neighbours joined as long as they fit together: what is left of a long sentence and the next one."""
    found: list[Span] = []
    for begin, end in spans:
        if found and end - found[-1][0] <= WIDEST * most and count(text[found[-1][0] : end]) <= most:
            found[-1] = found[-1][0], end
        else:
            found.append((begin, end))
    return found


def _cut(text: str, window: Span, count: Callable[[str], int], most: int) -> Iterator[Span]:
    import semchunk

    begin, end = window
    found: Any = semchunk.chunk(text[begin:end], most, count, memoize=False, offsets=True)
    _, offsets = found  # with the chunks themselves
    for first, last in offsets:
        yield from _halved(text, (begin + first, begin + last), count, most)


def _halved(text: str, span: Span, count: Callable[[str], int], most: int) -> Iterator[Span]:
    """The span, halved as long as it is too long: tokenizers may count more for a part than for the text around it."""
    begin, end = span
    if end - begin > 1 and count(text[begin:end]) > most:
        middle = (begin + end) // 2
        middle = next((at + 1 for at in (text.rfind(mark, begin, middle) for mark in "\n ") if at > begin), middle)
        yield from _halved(text, (begin, middle), count, most)
        yield from _halved(text, (middle, end), count, most)
    elif text[begin:end].strip():
        yield span


def unwrapped(text: str) -> str:
    """Prose that is wrapped at a fixed width, with blanks for its line ends, so that it is cut at sentences and not at
    lines. Character by character as long as before; other text as it is."""
    lines = text.split("\n")
    inner = [len(line) for line in lines[:-1]]
    prose = len(inner) > 1 and min(inner) > 0.6 * max(inner) and max(inner) <= 120
    marked = any(re.match(r"\s|[-*+\u2022|]\s|\d+[.)]\s", line) for line in lines)
    return text.replace("\n", " ") if prose and not marked else text


def windows(text: str) -> Iterator[Span]:
    """The text in spans of at most WINDOW characters, which end with a line, a sentence or a word if they can."""
    begin = 0
    while len(text) - begin > WINDOW:
        least, end = begin + WINDOW // 2, begin + WINDOW
        found = (text.rfind(mark, least, end) for mark in ("\n", ". ", " "))
        end = next((at + 1 for at in found if at >= 0), end)
        yield begin, end
        begin = end
    yield begin, len(text)
