from __future__ import annotations

import json

import pytest
from reading import texts

from ds_rag.data.documents.document import Unreadable
from ds_rag.data.documents.json_lines import NoDocuments
from ds_rag.data.documents.readers import documents_of


def put(*objects: object) -> bytes:
    return "".join(json.dumps(o) + "\n" for o in objects).encode()


def test_documents_of_a_file():
    first, second = documents_of(put({"id": 7, "title": "T", "text": "a\n\nb\nc"}, {"contents": "d"}), "in/docs.jsonl")
    assert (first.path, first.title, texts(first)) == ("in/docs.jsonl#7", "T", ["a", "b\nc"])
    assert (second.path, second.title, texts(second)) == ("in/docs.jsonl#2", "docs", ["d"])
    assert [(b.first, b.last) for b in first.blocks] == [(1, 1), (2, 2)] and first.unit == "paragraph"


def test_bad_lines_are_named_and_the_others_read():
    data = put({"id": 1, "text": "a"}) + b"{oops\n" + put([1], {"id": 1, "text": "again"}, {"text": None})
    (document,) = documents_of(data, "d.jsonl")
    (note,) = document.notes
    assert texts(document) == ["a"] and note.startswith("4 bad lines left out: line 2: no JSON, line 3: no text")


def test_what_is_no_document():
    with pytest.raises(NoDocuments, match="no text"):
        documents_of(put({"query": "q", "answer": "a"}), "rows.jsonl")
    with pytest.raises(NoDocuments, match="passages already"):
        documents_of(put({"id": "x", "title": "", "text": "t", "document": "d", "place": "", "hash": "h"}), "p.jsonl")
    with pytest.raises(Unreadable, match="line 1: no JSON") as caught:
        documents_of(b"{oops\n", "d.jsonl")
    assert not isinstance(caught.value, NoDocuments)
