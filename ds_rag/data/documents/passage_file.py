"""The lines of the file of passages, which any `--corpus` takes: ids that stay, each text once."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import IO, NamedTuple

EXAMPLES = 3


class Passage(NamedTuple):
    """Of the document at a path. place: such as 'page 3'; "" where none is known."""

    document: str
    title: str
    text: str
    place: str


def hash_of(title: str, text: str) -> str:
    """Of what the models read."""
    return hashlib.sha256(f"{title}\n{text}".encode()).hexdigest()[:32]


def id_of(document: str, text: str) -> str:
    """Of document and text alone: a passage keeps its id when its document changes elsewhere."""
    path, _, part = document.partition("#")
    name = re.sub(r"[^A-Za-z0-9]+", "-", part or PurePosixPath(path).stem)[:32].strip("-").lower()
    digest = hashlib.sha256(f"{document}\n{text}".encode()).hexdigest()[:16]
    return f"{name}-{digest}" if name else digest


class PassageWriter:
    """Writes passages, in the order of their documents; those with a title and text that another has are left out."""

    def __init__(self, stream: IO[str]):
        self.stream = stream
        self.hashes: set[str] = set()
        self.ids: set[str] = set()
        self.tokens: list[int] = []
        self.repeated = 0
        self.examples: list[str] = []  # some of the repeated texts

    @property
    def written(self) -> int:
        return len(self.tokens)

    def add(self, passage: Passage, tokens: int) -> None:
        hash_ = hash_of(passage.title, passage.text)
        if hash_ in self.hashes:
            self.repeated += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append(passage.text)
            return
        self.hashes.add(hash_)
        self.tokens.append(tokens)
        fields = {"id": self.new_id(passage), "title": passage.title, "text": passage.text}
        fields |= {"document": passage.document, "place": passage.place, "hash": hash_}
        self.stream.write(json.dumps(fields, ensure_ascii=False) + "\n")

    def new_id(self, passage: Passage) -> str:
        """The same text below another heading of its document gets a number."""
        first = found = id_of(passage.document, passage.text)
        number = 1
        while found in self.ids:
            number += 1
            found = f"{first}-{number}"
        self.ids.add(found)
        return found
