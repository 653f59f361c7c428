"""JSON lines of documents: an object a line with `text`, and perhaps `title` and `id`, as corpora have them."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from ds_rag.data.columns import CORPUS_NAMES
from ds_rag.data.documents.character_sets import decode
from ds_rag.data.documents.document import PARAGRAPH, Document, Outline, Unreadable
from ds_rag.data.documents.plain_text import paragraphs
from ds_rag.data.records import first_name

PASSAGE = {"id", "text", "document", "hash"}  # keys that passages of `ds-rag chunk` have
LISTED = 3  # bad lines that a message names


class NoDocuments(Unreadable):
    """A JSON file of something else, such as rows or passages: no fault of the file."""


def read_json_lines(data: bytes, path: str) -> list[Document]:
    """Each line's document, with `#` and its id (or number) in its path. Bad lines are named in the notes of the first
    document. Raises Unreadable where no line is good, NoDocuments where no line has a text."""
    text, notes = decode(data)
    found: dict[str, Document] = {}
    bad: list[str] = []
    texts = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            bad.append(f"line {number}: no JSON")
            continue
        if not isinstance(fields, dict) or not isinstance(body := _text(fields), str):
            bad.append(f"line {number}: no text")
            continue
        if fields.keys() >= PASSAGE:
            raise NoDocuments("passages already")
        texts += 1
        name = f"{path}#{first_name(fields, CORPUS_NAMES['id']) or number}"
        if name in found:
            bad.append(f"line {number}: the id of another document")
            continue
        found[name] = _document(name, fields, body)
    if bad and not texts:
        nothing = all(fault.endswith("no text") for fault in bad)
        raise (NoDocuments if nothing else Unreadable)(f"no documents: {', '.join(bad[:LISTED])}")
    documents = list(found.values())
    if bad:
        notes.append(f"{len(bad)} bad lines left out: {', '.join(bad[:LISTED])}")
    if documents and notes:
        first = documents[0]
        documents[0] = Document(first.path, first.title, first.blocks, first.unit, (*notes, *first.notes))
    return documents


def _text(fields: dict[str, Any]) -> object:
    return next((fields[name] for name in CORPUS_NAMES["text"] if name in fields), None)


def _document(name: str, fields: dict[str, Any], body: str) -> Document:
    outline = Outline(name, PARAGRAPH)
    for number, (_, paragraph) in enumerate(paragraphs(body.replace("\r\n", "\n")), start=1):
        outline.add(paragraph, number)
    stem = PurePosixPath(name.split("#")[0]).stem
    return outline.document(first_name(fields, CORPUS_NAMES["title"]) or "", stem)
