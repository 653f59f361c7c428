"""The documents read so far, in a file beside the passages: reading may take hours, and a killed call goes on there.

One line a file, appended once it is read, so that a kill loses the last line at most.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ds_rag.data.documents.document import Block, Document
from ds_rag.runtime.atomic_files import sync_file

SYNC_BYTES = 1 << 24  # written between two times that they are forced to the disk


class ReadDocuments:
    """The file `path`; what it holds of another `key` (the version of the readers) is dropped."""

    def __init__(self, path: Path, key: str):
        self.path = path
        self.known: dict[tuple[str, str], int] = {}  # (name, sha256) of a file -> where its line begins
        self.file = path.open("a+b")
        self.unsynced = 0
        end = self._index(key)
        self.file.truncate(end)
        if not end:
            self._append({"key": key})

    def _index(self, key: str) -> int:
        """Where the last complete line ends."""
        self.file.seek(0)
        end = 0
        for line in self.file:
            try:
                fields = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                fields = None
            if not isinstance(fields, dict) or (not end and fields.get("key") != key):
                break
            if end:
                self.known[fields["name"], fields["sha256"]] = end
            end += len(line)
        return end

    def _append(self, fields: dict[str, Any]) -> int:
        begin = self.file.seek(0, os.SEEK_END)
        line = json.dumps(fields).encode() + b"\n"
        self.file.write(line)
        self.file.flush()
        self.unsynced += len(line)
        if self.unsynced > SYNC_BYTES:
            sync_file(self.file)
            self.unsynced = 0
        return begin

    def add(self, name: str, sha256: str, documents: Iterable[Document]) -> None:
        fields = {"name": name, "sha256": sha256, "documents": [asdict(document) for document in documents]}
        self.known[name, sha256] = self._append(fields)

    def get(self, name: str, sha256: str) -> list[Document]:
        """Raises KeyError for a file that was not read."""
        self.file.seek(self.known[name, sha256])
        return [as_document(fields) for fields in json.loads(self.file.readline())["documents"]]

    def remove(self) -> None:
        self.file.close()
        self.path.unlink(missing_ok=True)


def as_document(fields: dict[str, Any]) -> Document:
    blocks = tuple(
        Block(**block | {"headings": tuple(block["headings"]), "numbers": tuple(block["numbers"])})
        for block in fields["blocks"]
    )
    return Document(**fields | {"blocks": blocks, "notes": tuple(fields["notes"])})
