"""What a call found and did, for the console and for `--json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ds_rag.data.documents.document import Unreadable
from ds_rag.data.documents.walk import Found
from ds_rag.data.statistics import spread

STATES = ("new", "changed", "same", "gone")


class Left(NamedTuple):
    """A unit of boilerplate, and the number of distinct documents that have it."""

    text: str
    documents: int


@dataclass
class Summary:
    """Files are named relative to the folder of all documents."""

    found: Found
    files: dict[str, list[str]] = field(default_factory=lambda: {state: [] for state in STATES})
    documents: int = 0
    passages: dict[str, int] = field(default_factory=dict)  # written; of them added, kept; removed; repeated
    repeated: list[str] = field(default_factory=list)  # some of the texts that are left out as another's
    tokens: list[int] = field(default_factory=list)
    unreadable: dict[str, Unreadable] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)  # files without text
    not_documents: list[str] = field(default_factory=list)  # JSON lines of rows or passages
    notes: dict[str, list[str]] = field(default_factory=dict)
    boilerplate: list[Left] = field(default_factory=list)
    again: str = ""  # why everything was read again
    reread: int = 0  # unchanged files that were cut again, for what counts as boilerplate has changed

    def as_json(self) -> dict[str, Any]:
        return {
            "files": self.files,
            "documents": self.documents,
            "passages": self.passages,
            "tokens": spread(self.tokens),
            "unreadable": {name: {"why": e.why, "fix": e.fix} for name, e in self.unreadable.items()},
            "empty": self.empty,
            "not_documents": self.not_documents,
            "unknown_suffixes": dict(self.found.unknown),
            "hidden": self.found.hidden,
            "links_out": self.found.links,
            "notes": self.notes,
            "boilerplate": [left._asdict() for left in self.boilerplate],
            "read_again": self.again or None,
            "cut_again": self.reread,
        }
