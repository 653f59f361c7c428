"""The document of a text: which document a passage or a row is from, under which title, and at which place in it.

All three are optional. Code reads them through `RagData.passage`, `RagData.document_of` and `RagData.row_document`, and
does not depend on how they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol


class Origin(NamedTuple):
    """Where a text is from. place: where in the document: a heading path, a page or a number, as text."""

    document: str | None = None
    title: str | None = None
    place: str | None = None


NOWHERE = Origin()  # one object for all texts that name no document


class PassageRecord(NamedTuple):
    """One passage of the table. text: as the models read it, "title text" where the passage has a title."""

    number: int
    id: str
    text: str
    document: str | None
    title: str | None
    place: str | None


class HasOrigin(Protocol):
    """A passage, as far as this file is concerned."""

    @property
    def text(self) -> str: ...

    @property
    def origin(self) -> Origin: ...


class NamesPassages(Protocol):
    """A row, as far as this file is concerned."""

    @property
    def positives(self) -> tuple[str, ...]: ...

    @property
    def given(self) -> Sequence[HasOrigin]: ...

    @property
    def origin(self) -> Origin: ...


def origin_in(fields: Mapping[str, object], names: Mapping[str, str]) -> Origin:
    """The origin that a record's fields name. names: role -> column."""
    found = Origin(*(as_name(fields.get(names[role])) if role in names else None for role in Origin._fields))
    return found if any(found) else NOWHERE


def as_name(value: object) -> str | None:
    """A text or a whole number as a name; None for a missing or blank value, and for anything else (another toolkit may
    keep an object in a column of this name)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return (value.strip() or None) if isinstance(value, str) else None


def origins_of(
    corpus: Iterable[HasOrigin],
    rows: Iterable[NamesPassages],
    place: Callable[[Iterable[str]], tuple[int, ...]],
    size: int,
) -> list[Origin]:
    """The origin of each of `size` passages; empty where none is known. place: texts -> their numbers.

    The corpus decides, then passages that rows give as objects, then a row's own origin for its positives. If several
    rows disagree, the first name in alphabetical order holds, so that the order of rows does not matter.
    """
    rows = list(rows)
    first: dict[int, Origin] = {}
    for passage in corpus:
        if passage.origin is not NOWHERE:
            first.setdefault(place([passage.text])[0], passage.origin)
    given = ((p.text, p.origin) for row in rows for p in row.given if p.origin is not NOWHERE)
    own = ((text, row.origin) for row in rows if row.origin is not NOWHERE for text in row.positives)
    found = first
    for source in (given, own):
        offered: dict[int, Origin] = {}
        for text, origin in source:
            for n in place([text]):
                offered[n] = min(origin, offered.get(n, origin), key=_order)
        for n, origin in offered.items():
            known = found.get(n, NOWHERE)
            found[n] = Origin(*(a or b for a, b in zip(known, origin, strict=True)))
    return [found.get(n, NOWHERE) for n in range(size)] if found else []


def _order(origin: Origin) -> tuple[tuple[bool, str], ...]:
    return tuple((value is None, value or "") for value in origin)
