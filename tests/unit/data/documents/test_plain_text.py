from __future__ import annotations

from reading import lines, read, texts

from ds_rag.data.documents.readers import documents_of


def test_paragraphs_and_their_lines():
    document = read("one\ntwo  \n\n \nthree\n\fthree and a half", "notes.txt")
    assert (document.title, texts(document)) == ("notes", ["one\ntwo", "three", "three and a half"])
    assert lines(document) == [(1, 2), (5, 5), (7, 7)]


def test_nothing():
    assert documents_of(b" \n\t", "a.txt") == []
