"""Bytes of every usual encoding give the same text; what is no text is refused."""

from __future__ import annotations

import codecs

import pytest

from ds_rag.data.documents.character_sets import decode
from ds_rag.data.documents.document import Unreadable

TEXT = "Müller kauft “Äpfel”\nfür 3 €\n"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (TEXT.encode(), ""),
        (codecs.BOM_UTF8 + TEXT.encode(), ""),
        (TEXT.encode("utf-16"), "UTF-16"),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "UTF-16"),
        (TEXT.encode("utf-32"), "UTF-32"),
        (TEXT.encode("cp1252"), "Windows-1252"),
        (TEXT.replace("\n", "\r\n").encode(), ""),
        (TEXT.replace("\n", "\r").encode(), ""),
    ],
    ids=["utf-8", "utf-8 with a mark", "utf-16", "utf-16-be", "utf-32", "cp1252", "CRLF", "CR"],
)
def test_encodings(data, said):
    text, notes = decode(data)
    assert text == TEXT
    assert [said in note for note in notes] == [True] * bool(said)


def test_utf_16_without_a_mark():
    assert decode("plain words".encode("utf-16-le"))[0] == "plain words"
    assert decode("plain words".encode("utf-16-be"))[0] == "plain words"


def test_what_no_other_encoding_knows_is_latin_1():
    assert decode(b"caf\xe9 \x81") == ("café \x81", ["not UTF-8: read as Latin-1"])


@pytest.mark.parametrize("head", ['<meta charset="shift_jis">', '<?xml version="1.0" encoding="shift_jis"?>'])
def test_a_declared_encoding(head):
    data = (head + "日本語").encode("shift_jis")
    assert decode(data, declares=True)[0] == head + "日本語"
    assert decode(data)[0] != head + "日本語", "plain text declares nothing"
    assert decode(b'<meta charset="no-such">\xe9', declares=True)[0].endswith("é")
    assert decode(head.encode() + "日本語".encode(), declares=True)[0].endswith("日本語"), "UTF-8 that fits comes first"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"some text\0and more", "NUL byte at offset 9"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "NUL byte"),
        (bytes(range(1, 32)) * 4, "control characters"),
        (codecs.BOM_UTF16_LE + b"a\0b", "UTF-16"),
    ],
)
def test_what_is_no_text(data, says):
    with pytest.raises(Unreadable, match=says):
        decode(data)
