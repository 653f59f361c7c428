"""Markdown by markdown-it-py, as CommonMark with tables: the text without its marks, lists and tables kept readable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ds_rag.data.documents.character_sets import decode
from ds_rag.data.documents.document import CODE, LINE, TABLE, Document, Outline
from ds_rag.data.documents.html import read_into

FRONT = re.compile(r"\A---[ \t]*\n(.*?\n)?(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)


def read_markdown(data: bytes, path: str) -> list[Document]:
    text, notes = decode(data)
    outline = Outline(path, LINE, notes)
    return [outline.document(read_markdown_into(outline, text))]


def read_markdown_into(outline: Outline, text: str) -> str:
    """Adds Markdown to an outline; returns the title of its front matter, "" where there is none. Front matter itself
    is data about the document, not text of it."""
    title, before = "", 0
    if front := FRONT.match(text):
        title, before = title_in(front[1] or ""), front[0].count("\n")
        text = text[front.end() :]
    walker = _Walker(outline, before)
    walker.walk(_parse(text))
    return title


def title_in(front: str) -> str:
    import yaml

    try:
        found = yaml.safe_load(front)
    except (yaml.YAMLError, RecursionError, ValueError):
        return ""
    title = found.get("title") if isinstance(found, dict) else None
    return title if isinstance(title, str) else ""


def _parse(text: str) -> list[Any]:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


class _Walker:
    def __init__(self, outline: Outline, before: int):
        self.outline, self.before = outline, before
        self.lists: list[int | None] = []  # open lists: the number of the next item, or None for bullets
        self.lines: list[str] = []  # of the outermost list, or of the table
        self.numbers: list[int] = []  # of these lines in the file
        self.line = 0  # of the file, where the newest token with a place begins
        self.span = 0, 0  # its first and last line
        self.cells: list[str] = []
        self.marker = ""
        self.level = 0  # of the heading that is open
        self.in_table = False

    def walk(self, tokens: list[Any]) -> None:
        for token in tokens:
            kind = token.type
            self.line = token.map[0] + 1 + self.before if token.map else self.line
            if kind == "heading_open":
                self.level = int(token.tag[1])
                self.at(token)
            elif kind == "heading_close":
                self.level = 0
            elif kind == "inline":
                self.inline("".join(plain(token.children or ())), token)
            elif kind in ("bullet_list_open", "ordered_list_open"):
                if not self.lists:
                    self.at(token)
                self.lists.append(int(token.attrGet("start") or 1) if kind[0] == "o" else None)
            elif kind == "list_item_open":
                self.marker = self.next_marker()
            elif kind in ("bullet_list_close", "ordered_list_close"):
                self.lists.pop()
                if not self.lists:
                    self.end()
            elif kind in ("fence", "code_block"):
                self.code(token)
            elif kind == "html_block":
                self.html(token)
            else:
                self.table(kind, token)

    def table(self, kind: str, token: Any) -> None:
        if kind == "table_open":
            self.in_table = True
            if not self.lists:
                self.at(token)
        elif kind == "tr_close":
            self.put("  " * len(self.lists) + " | ".join(self.cells))
            self.cells = []
        elif kind == "table_close":
            self.in_table = False
            if not self.lists:
                self.end(TABLE)

    def at(self, token: Any) -> None:
        if token.map:
            self.span = token.map[0] + 1 + self.before, token.map[1] + self.before

    def inline(self, text: str, token: Any) -> None:
        if self.level:
            self.outline.heading(self.level, text, self.span[0])
        elif self.in_table:
            self.cells.append(" ".join(text.split()))
        elif self.lists:
            indent = "  " * len(self.lists)
            for line in filter(None, (" ".join(line.split()) for line in text.split("\n"))):
                self.put((self.marker or indent) + line)
                self.marker = ""
        else:
            self.at(token)
            self.outline.add(text, *self.span)

    def code(self, token: Any) -> None:
        if self.lists:
            indent = "  " * len(self.lists)
            for n, line in enumerate(token.content.rstrip("\n").split("\n"), start=token.type == "fence"):
                self.put(indent + line, n)
            return
        self.at(token)
        first, last = self.span
        if token.type == "fence":  # without the lines of its fences
            first, last = first + 1, first + token.content.count("\n")
        self.outline.add(token.content, first, max(first, last), CODE)

    def html(self, token: Any) -> None:
        self.at(token)
        if self.lists:
            inside = Outline("")
            read_into(inside, token.content)
            for block in inside.blocks:
                self.put("  " * len(self.lists) + " ".join(block.text.split()))
        else:
            read_into(self.outline, token.content, self.span[0] - 1)

    def put(self, line: str, after: int = 0) -> None:
        """Adds a line of a list or a table. after: lines of the file since the newest token began."""
        self.lines.append(line)
        self.numbers.append(self.line + after)

    def next_marker(self) -> str:
        indent = "  " * (len(self.lists) - 1)
        number = self.lists[-1]
        if number is None:
            return f"{indent}- "
        self.lists[-1] = number + 1
        return f"{indent}{number}. "

    def end(self, kind: str = "text") -> None:
        self.outline.add("\n".join(self.lines), *self.span, kind, self.numbers)
        self.lines, self.numbers = [], []


def plain(children: Any) -> Iterator[str]:
    """The text of inline tokens: without marks and addresses, images by their alternative text."""
    for token in children:
        if token.type == "softbreak":
            yield " "
        elif token.type == "hardbreak" or (token.type == "html_inline" and token.content[:3].lower() == "<br"):
            yield "\n"
        elif token.type == "image":
            yield from plain(token.children or ())
        elif token.type != "html_inline":
            yield token.content
