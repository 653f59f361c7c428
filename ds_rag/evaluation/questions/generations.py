"""What a language model has written, on disk: an append-only file, so that nothing is generated twice.

A line is one batch. It is written in one go and is on the disk before the next batch begins; a line that a crash has
cut is removed at the next start, and its batch is generated again. Lines of other settings stay in the file and are not
used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ds_rag.evaluation.questions.writer import Generation
from ds_rag.runtime import collectives
from ds_rag.runtime.atomic_files import sync_file
from ds_rag.runtime.errors import UserError, not_written

Name = tuple[str, int]  # hash of a passage's text, number of the question


class Generations:
    """(hash of a passage, number) -> `Generation`, for one key. All ranks open it together; rank 0 writes.

    settings: everything that a generation depends on beside the passage and the number. say: called with warnings.
    Raises UserError where the file cannot be read or is another one.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any], say: Callable[[str], None] = lambda text: None):
        self.file = file
        text = json.dumps(settings, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.known: dict[Name, Generation] = {}
        if collectives.rank() == 0:
            try:
                cut_tail(file, say)
            except OSError as error:
                raise UserError(f"{file}: cannot be read", found=error.strerror, expected="generations") from None
        collectives.barrier()
        seen = self._read(say) if file.exists() else set()
        if self.key not in seen and collectives.rank() == 0:
            self._append({"key": self.key, "settings": settings})

    def _read(self, say: Callable[[str], None]) -> set[str]:
        """Fills `known`. Returns the keys in the file."""
        keys, bad = set(), 0
        for line in self.file.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                keys.add(entry["key"])
                if entry["key"] == self.key:
                    for hash_, number, *rest in entry.get("written", ()):
                        self.known.setdefault((hash_, number), Generation(*rest))
            except (ValueError, KeyError, TypeError, AttributeError):
                bad += 1
        if bad and not keys:
            raise UserError(
                f"{self.file}: not a file of generations",
                found=f"{bad} lines",
                expected="none, or one of ds-rag qa-gen's",
                fix="rename it, or another --out",
            )
        if bad:
            say(f"warning: {self.file}: {bad} damaged lines are not used, their questions are written again")
        return keys

    def add(self, names: Sequence[Name], written: Sequence[Generation]) -> None:
        """Keeps one batch. All ranks call it with the same batches, in the same order."""
        self.known |= dict(zip(names, written, strict=True))
        if collectives.rank() == 0:
            rows = [[*name, g.text, g.ended, g.tokens] for name, g in zip(names, written, strict=True)]
            self._append({"key": self.key, "written": rows})

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as stream:
                stream.write(json.dumps(entry).encode() + b"\n")
                sync_file(stream)
        except OSError as error:
            raise not_written(
                "generations", error, self.file.parent, "free space; what was written before is kept"
            ) from None


def cut_tail(file: Path, say: Callable[[str], None]) -> None:
    """Removes a last line without an end, which a crash has left."""
    if not file.exists():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        if not content.lstrip().startswith(b"{"):
            raise UserError(f"{file}: not a file of generations", expected="no other file", fix="another --out")
        os.truncate(file, whole)
        say(f"note: {file}: the last line was cut by a crash, its questions are written again")


def hash_text(text: str) -> str:
    """Of a passage: 16 bytes of sha256, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
