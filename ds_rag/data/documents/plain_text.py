"""Plain text: a paragraph is what stands between blank lines."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from ds_rag.data.documents.character_sets import decode
from ds_rag.data.documents.document import Document, Outline


def read_text(data: bytes, path: str) -> list[Document]:
    text, notes = decode(data)
    outline = Outline(path, notes=notes)
    for first, paragraph in paragraphs(text):
        outline.add(paragraph, first, first + paragraph.count("\n"))
    return [outline.document()]


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """(number of its first line, from 1; paragraph) of each."""
    lines = enumerate(text.replace("\f", "\n").split("\n"), start=1)
    for blank, several in groupby(lines, key=lambda line: not line[1].strip()):
        if not blank:
            numbered = list(several)
            yield numbered[0][0], "\n".join(line for _, line in numbered)
