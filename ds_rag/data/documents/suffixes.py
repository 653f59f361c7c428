"""The suffixes of documents, by kind, and what a user does with documents where rows or passages are expected."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from shlex import quote

KINDS: dict[str, tuple[str, ...]] = {
    "Markdown": (".md", ".markdown", ".mdown", ".mkd"),
    "text": (".txt", ".text"),
    "reStructuredText": (".rst",),
    "HTML": (".html", ".htm", ".xhtml"),
    "PDF": (".pdf",),
    "office": (".docx", ".pptx", ".xlsx"),
    "JSON lines": (".jsonl", ".ndjson"),  # of documents: `text`, and perhaps `id` and `title`
}
KIND_OF = {suffix: kind for kind, several in KINDS.items() for suffix in several}
LOOK = 2000  # files looked at in a folder


def documents_hint(path: Path, rows: bool) -> str | None:
    """The next step where `path` is a document, or a folder that contains some; None where it is neither. JSON lines
    are rows or passages there already, so they are not documents here. rows: rows were expected there, not passages."""
    names = islice(names_in(path), LOOK) if path.is_dir() else [path.name]
    if not any(map(is_document, names)):
        return None
    place = quote(str(path))
    cut = f"ds-rag chunk {place} --out passages.jsonl --retriever MODEL"
    if rows:
        return f"ds-rag build {place} makes passages, questions and a trained pair of them; {cut} passages alone"
    return f"{cut}, then --corpus passages.jsonl"


def is_document(name: str) -> bool:
    return KIND_OF.get(Path(name).suffix.lower(), "JSON lines") != "JSON lines"


def names_in(folder: Path) -> Iterator[str]:
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from files
