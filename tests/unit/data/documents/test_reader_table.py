"""The table of readers has one for each suffix, and whatever fails in one is a file that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_rag.data.documents import readers
from ds_rag.data.documents.document import Unreadable
from ds_rag.data.documents.suffixes import KIND_OF, KINDS, documents_hint


def test_every_kind_has_a_reader():
    assert set(readers.READERS) == set(KINDS)
    assert len(KIND_OF) == sum(map(len, KINDS.values())), "no suffix belongs to two"


def test_an_error_of_a_library_is_a_damaged_file(monkeypatch):
    monkeypatch.setitem(readers.READERS, "text", lambda data, path: [][1])
    with pytest.raises(Unreadable, match="damaged: IndexError"):
        readers.documents_of(b"x", "a.TXT")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FileNotFoundError(2, "x"), "vanished"),
        (PermissionError(13, "x"), "permission"),
        (OSError(5, "broken"), "broken"),
    ],
)
def test_a_file_that_cannot_be_opened(monkeypatch, error, says):
    def fails(self: Path) -> bytes:
        raise error

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(Unreadable, match=says):
        readers.read_bytes(Path("a.txt"))


def test_the_next_step_of_a_user_with_documents(tmp_path):
    docs = tmp_path / "my docs"
    (docs / "in").mkdir(parents=True)
    (docs / "in/rows.jsonl").write_text("{}")
    assert documents_hint(docs, rows=True) is None, "JSON lines are rows there"
    (docs / "in/a.md").write_text("x")
    wanted = f"ds-rag chunk '{docs}' --out passages.jsonl --retriever MODEL, then --corpus passages.jsonl"
    assert documents_hint(docs, rows=False) == wanted
    assert f"ds-rag build '{docs}' makes" in (documents_hint(docs, rows=True) or "")
    assert "a.md' --out" in (documents_hint(docs / "in/a.md", rows=True) or "")
    assert documents_hint(Path("x.csv"), rows=True) is None
