"""What stands in many documents: licences, footers, notices. It would be found for every question, so it is left out.

A unit is a block, or a line of a block of text that has several lines; of code and tables only whole blocks count, for
their lines repeat by nature. Units are compared without case and blanks.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from ds_rag.data.documents.document import TEXT, Block, Document

LEAST_WORDS = 3  # of a unit
MOST_LOST = 0.5  # of a document's characters; one that would lose more is a near copy of others, and keeps its text


@dataclass(frozen=True)
class Repeated:
    """When a unit counts as boilerplate: in so many distinct documents, and in this fraction of them. keep: never."""

    documents: int = 5
    fraction: float = 0.3
    keep: bool = False


@dataclass(frozen=True)
class Units:
    """Of one document. text: of the document as a whole; copies of a document count once."""

    text: str
    keys: tuple[str, ...]


def units_of(document: Document) -> Units:
    whole = _hash("\n\n".join(block.text for block in document.blocks))
    keys = (key for block in document.blocks for key, _ in _units(block))
    return Units(whole, tuple(sorted(set(keys))))


def find_boilerplate(every: Iterable[Units], wanted: Repeated) -> dict[str, int]:
    """Key of a unit -> number of distinct documents that have it."""
    if wanted.keep:
        return {}
    distinct = {units.text: units.keys for units in every}
    counts = Counter(key for keys in distinct.values() for key in keys)
    least = max(wanted.documents, wanted.fraction * len(distinct))
    return {key: count for key, count in counts.items() if count >= least}


def without_boilerplate(document: Document, keys: Collection[str]) -> tuple[Document, dict[str, str]]:
    """(the document without these units, key -> text of those that were left out)."""
    lost: dict[str, str] = {}
    blocks = [left for block in document.blocks if (left := _left(block, keys, lost)) is not None]
    before, after = (sum(len(block.text) for block in several) for several in (document.blocks, blocks))
    if before - after > MOST_LOST * before:
        return document, {}
    return replace(document, blocks=tuple(blocks)), lost


def _left(block: Block, keys: Collection[str], lost: dict[str, str]) -> Block | None:
    """What is left of a block; adds to `lost` what is not. A block without some of its lines has the place of all."""
    found = {key: text for key, text in _units(block) if key in keys}
    lost |= found
    if not found:
        return block
    lines = [line for line in block.text.split("\n") if _key(line) not in found]
    if _key(block.text) in found or not any(line.strip() for line in lines):
        return None
    return replace(block, text="\n".join(lines).strip("\n"), numbers=())


def _units(block: Block) -> Iterator[tuple[str, str]]:
    """(key, text) of each."""
    lines = block.text.split("\n") if block.kind == TEXT else []
    for text in (block.text, *(lines if len(lines) > 1 else ())):
        if len(text.split()) >= LEAST_WORDS:
            yield _key(text), text


def _key(text: str) -> str:
    return _hash(" ".join(text.casefold().split()))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
