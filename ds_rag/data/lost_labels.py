"""Which labelled rows name a passage that a corpus does not have (any more), as after its documents were changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ds_rag.data.by_id import flat
from ds_rag.data.columns import ROW_NAMES
from ds_rag.data.formats import fields_of_rows
from ds_rag.data.matching import find_in_corpus
from ds_rag.data.records import Passage, Row

ID_FIELDS = ROW_NAMES["positive_ids"]  # of a row as an object, which labels passages by their id
FEW = 3  # rows that a message names


class Lost(NamedTuple):
    """A row, and those of its labels that are not in the corpus: texts, or ids where it labels by id. all: none of its
    labels is left."""

    id: str
    query: str
    labels: tuple[str, ...]
    all: bool


def lost_labels(rows: Iterable[Row | Mapping[str, Any]], corpus: Sequence[Passage]) -> list[Lost]:
    """The rows of which a labelled passage is not in the corpus, in their order; rows without a label are never lost.

    rows: as they are read, whose labels are texts; or the fields of rows that label passages by id (ID_FIELDS). A text
    counts as found as `build_table` finds it: without regard to case, blanks and titles.
    """
    rows = list(rows)
    read = [row for row in rows if isinstance(row, Row)]
    number = {passage.text: n for n, passage in reversed(list(enumerate(corpus)))}
    ids, texts = {passage.id for passage in corpus}, number.keys() | find_in_corpus(corpus, number, read).keys()
    found = []
    for row in rows:
        if isinstance(row, Row):
            id_, query, labels = row.id, row.query, row.positives
            lost = tuple(label for label in labels if label not in texts)
        else:
            id_, query, labels = first_of(row, ("id", "_id")), first_of(row, ROW_NAMES["query"]), labelled_ids(row)
            lost = tuple(label for label in labels if label not in ids)
        if lost:
            found.append(Lost(id_, query, lost, len(lost) == len(labels)))
    return found


def labelled_ids(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids of a row's labelled passages, each once."""
    values = [row[name] for name in ID_FIELDS if row.get(name) is not None]
    return tuple(dict.fromkeys(str(one).strip() for value in values for one in flat(value)))


def first_of(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of these fields that the row has, as text; empty where it has none."""
    return next((str(row[name]) for name in names if row.get(name) is not None), "")


def rows_by_id(path: str | Path, flag: str) -> list[Mapping[str, Any]]:
    """The rows of a file that label passages by id, as their fields. Raises UserError for a path that cannot be
    read."""
    return [row for row in fields_of_rows(path, flag) if labelled_ids(row)]


def lost_note(lost: Sequence[Lost], labelled: int, then: str = "") -> str:
    """A notice about lost labels, which names the first rows. labelled: number of rows that have a label; then: what
    happens to them."""
    first = ", ".join(f"{row.id} ({short(row.query)})" for row in lost[:FEW])
    more = f" and {len(lost) - FEW} more" if len(lost) > FEW else ""
    gone = sum(row.all for row in lost)
    left = "" if gone == len(lost) else f", {gone} of them without any label left"
    return (
        f"{len(lost)} of {labelled} labelled rows name a passage that is not in the corpus{left}: {first}{more}{then}"
    )


def short(query: str) -> str:
    return query if len(query) <= 40 else f"{query[:40]}..."
