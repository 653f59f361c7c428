"""Bytes of a text file as text: UTF-8, what a byte-order mark says, else Windows-1252; not what is no text."""

from __future__ import annotations

import codecs
import re

from ds_rag.data.documents.document import Unreadable

MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
DECLARED = re.compile(rb"""<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
CONTROL = re.compile(r"[\x01-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")  # not tab, line ends, form feed, escape
MOST_CONTROL = 0.02  # of the characters of a text


def decode(data: bytes, declares: bool = False) -> tuple[str, list[str]]:
    """(the text, notes about its encoding). declares: look for the encoding that HTML or XML declares. Raises
    Unreadable."""
    text, notes = _decoded(data, declares)
    if "\0" in text:
        raise Unreadable(f"not text: a NUL byte at offset {data.index(0)}")
    sample = text[:100_000]
    if sample and len(CONTROL.findall(sample)) > MOST_CONTROL * len(sample):
        raise Unreadable("not text: control characters")
    return text.replace("\r\n", "\n").replace("\r", "\n"), notes


def _decoded(data: bytes, declares: bool) -> tuple[str, list[str]]:
    for mark, name in MARKS:
        if data.startswith(mark):
            try:
                return data.decode(name), [] if name == "utf-8-sig" else [f"read as {name.upper()}"]
            except UnicodeDecodeError as error:
                raise Unreadable(f"not {name.upper()}, as its first bytes say: {error.reason}") from None
    if (wide := _wide(data)) is not None:
        try:
            return data.decode(wide), [f"read as {wide.upper()}, without a byte-order mark"]
        except UnicodeDecodeError:
            pass
    try:
        return data.decode("utf-8"), []
    except UnicodeDecodeError:
        pass
    declared = DECLARED.search(data[:2048]) if declares else None
    for name in (declared[1].decode("ascii", "replace") if declared else "", "cp1252"):
        try:
            return data.decode(name), [f"not UTF-8: read as {'Windows-1252' if name == 'cp1252' else name}"]
        except (UnicodeDecodeError, LookupError):
            pass
    return data.decode("latin-1"), ["not UTF-8: read as Latin-1"]


def _wide(data: bytes) -> str | None:
    """UTF-16 without a byte-order mark, of mostly ASCII: every second byte is 0."""
    start = data[:64]
    if len(start) >= 4 and len(data) % 2 == 0:
        if start[0] and start[2] and not any(start[1::2]):
            return "utf-16-le"
        if start[1] and start[3] and not any(start[0::2]):
            return "utf-16-be"
    return None
