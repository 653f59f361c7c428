"""What the tests of all readers use."""

from __future__ import annotations

from ds_rag.data.documents.document import Document
from ds_rag.data.documents.readers import documents_of


def read(content: str | bytes, path: str) -> Document:
    """The only document of a file."""
    (document,) = documents_of(content.encode() if isinstance(content, str) else content, path)
    return document


def texts(document: Document) -> list[str]:
    return [block.text for block in document.blocks]


def below(document: Document) -> list[tuple[tuple[str, ...], str]]:
    return [(block.headings, block.text) for block in document.blocks]


def lines(document: Document) -> list[tuple[int, int]]:
    return [(block.first, block.last) for block in document.blocks]


def words_and_two(several: list[str]) -> list[int]:
    """A tokenizer's count that can be checked by eye: words, and two special tokens."""
    return [len(text.split()) + 2 for text in several]


def bytes_and_two(several: list[str]) -> list[int]:
    """One that counts several tokens for a character."""
    return [len(text.encode()) + 2 for text in several]
