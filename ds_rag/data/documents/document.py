"""What a reader makes of a file: documents, each a list of blocks below headings; and the outline that collects
them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from ds_rag.data.records import is_blank

TEXT, CODE, TABLE = "text", "code", "table"  # kinds of block: a code block and a table are kept together
LINE, PAGE, SLIDE, PARAGRAPH = "line", "page", "slide", "paragraph"  # what a place counts


class Unreadable(Exception):
    """A file that is broken, or of which no text can be read. fix: what its user can do."""

    def __init__(self, why: str, fix: str | None = None):
        super().__init__(why)
        self.why, self.fix = why, fix


@dataclass(frozen=True)
class Block:
    """A paragraph, a list, a table or a code block. first, last: its lines or pages in the file, from 1. numbers: the
    line of the file that each line of the text is from, so that a part has a place of its own; empty: not known, unless
    the text has as many lines as the block has in the file."""

    text: str
    headings: tuple[str, ...] = ()  # above it, from the outermost; without the document's title
    first: int = 0
    last: int = 0
    kind: str = TEXT
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Document:
    """path: POSIX, relative to the folder of all documents; in a file of several documents with `#` and the id of one.
    unit: what `first` and `last` of its blocks count."""

    path: str
    title: str
    blocks: tuple[Block, ...]
    unit: str = LINE
    notes: tuple[str, ...] = ()


class Outline:
    """Collects a document's blocks in order and keeps the headings above them."""

    def __init__(self, path: str, unit: str = LINE, notes: Iterable[str] = ()):
        self.path, self.unit, self.notes = path, unit, list(notes)
        self.blocks: list[Block] = []
        self.above: list[tuple[int, str]] = []  # (level, text) of the headings above the next block
        self.every: list[tuple[int, str]] = []
        self.bare: tuple[str, int] | None = None  # a heading without anything below it so far, and its place
        self.begins_with_heading = False

    def heading(self, level: int, text: str, at: int) -> None:
        """level: 1 is the highest."""
        text = " ".join(tidy(text).split())
        if not text:
            return
        if self.above and level <= self.above[-1][0]:
            self.keep_bare()
        while self.above and self.above[-1][0] >= level:
            self.above.pop()
        self.begins_with_heading |= not self.blocks and not self.every
        self.above.append((level, text))
        self.every.append((level, text))
        self.bare = text, at

    def add(
        self, text: str, first: int, last: int | None = None, kind: str = TEXT, numbers: Sequence[int] = ()
    ) -> None:
        """Adds a block, unless it is blank."""
        text = tidy(text).strip("\n").rstrip()
        text = text if kind == CODE else text.lstrip()
        if is_blank(text):
            return
        self.bare = None
        self.blocks.append(Block(text, self.headings, first, first if last is None else last, kind, tuple(numbers)))

    @property
    def headings(self) -> tuple[str, ...]:
        return tuple(text for _, text in self.above)

    def keep_bare(self) -> None:
        """A heading with nothing below it is text of the section around it: else its words would be lost."""
        if self.bare:
            text, at = self.bare
            self.blocks.append(Block(text, self.headings[:-1], at, at))
            self.bare = None

    def document(self, title: str = "", otherwise: str = "") -> Document:
        """title: as the file itself states it; without it, the only heading of the highest level, if the document
        begins with it; else `otherwise`, else the name of the file."""
        self.keep_bare()
        title = " ".join(tidy(title).split())
        top = min((level for level, _ in self.every), default=0)
        highest = [text for level, text in self.every if level == top]
        leads = self.begins_with_heading and len(highest) == 1 and self.every[0][1] == highest[0]
        if not title:
            title = highest[0] if leads else " ".join(tidy(otherwise).split()) or PurePosixPath(self.path).stem
        if leads and same(highest[0], title):
            blocks = [replace(b, headings=b.headings[b.headings[:1] == (highest[0],) :]) for b in self.blocks]
        else:
            blocks = self.blocks
        return Document(self.path, title, tuple(blocks), self.unit, tuple(self.notes))


def same(one: str, other: str) -> bool:
    """Equal but for case and blanks?"""
    return one.casefold().split() == other.casefold().split()


def tidy(text: str) -> str:
    """The text with LF at the end of lines, no blanks before them, and without what no passage may contain or show:
    NUL, soft hyphens, lone surrogates."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").replace("\0", "").replace("\u00ad", "")
    if not text.isascii():
        text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return "\n".join(line.rstrip() for line in text.split("\n"))


def place(unit: str, first: int, last: int) -> str:
    """'page 3', 'lines 10-22'."""
    return f"{unit} {first}" if first == last else f"{unit}s {first}-{last}"
