"""The table of readers of documents. To add a kind: its suffixes in `suffixes.py`, a file with its reader, a line here.

A reader takes the bytes of a file and its name, and returns its documents; it raises `Unreadable` for what its user
should know. Any other error of a library is a damaged file too: parsers fail in many ways on damaged input.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ds_rag.data.documents.document import Document, Unreadable
from ds_rag.data.documents.html import read_html
from ds_rag.data.documents.json_lines import read_json_lines
from ds_rag.data.documents.markdown import read_markdown
from ds_rag.data.documents.office import read_office
from ds_rag.data.documents.pdf import read_pdf
from ds_rag.data.documents.plain_text import read_text
from ds_rag.data.documents.restructured_text import read_rst
from ds_rag.data.documents.suffixes import KIND_OF

READERS: dict[str, Callable[[bytes, str], list[Document]]] = {
    "Markdown": read_markdown,
    "text": read_text,
    "reStructuredText": read_rst,
    "HTML": read_html,
    "PDF": read_pdf,
    "office": read_office,
    "JSON lines": read_json_lines,
}


def read_bytes(file: Path) -> bytes:
    """Raises Unreadable for a file that has vanished or that this user may not read."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise Unreadable("vanished before it was read") from None
    except PermissionError:
        raise Unreadable("no permission to read it", "chmod u+r, or another user") from None
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from None


def documents_of(data: bytes, path: str) -> list[Document]:
    """The documents of a file's bytes. path: its name, relative to the folder of all documents. Raises Unreadable."""
    if not data.strip():
        return []
    kind = KIND_OF[PurePosixPath(path).suffix.lower()]
    try:
        return READERS[kind](data, path)
    except Unreadable:
        raise
    except Exception as error:  # of a parser
        raise Unreadable(f"damaged: {type(error).__name__}: {str(error)[:200]}") from error
