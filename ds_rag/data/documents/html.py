"""HTML by the standard library's parser, which takes broken tags as browsers do: headings, paragraphs, lists, tables
and code; without scripts, styles and navigation."""

from __future__ import annotations

from html.parser import HTMLParser

from ds_rag.data.documents.character_sets import decode
from ds_rag.data.documents.document import CODE, TABLE, TEXT, Document, Outline

SKIPPED = {"script", "style", "nav", "noscript", "template", "svg", "iframe", "object", "canvas", "button", "select"}
VOID = {"br", "hr", "img", "input", "meta", "link", "col", "wbr", "area", "base", "embed", "source", "track"}
HEADINGS = {f"h{n}": n for n in range(1, 7)}
BLOCKS = {"address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "div"}
BLOCKS |= {"dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "head", "header", "hgroup", "hr", "html"}
BLOCKS |= {"legend", "main", "p", "section", "summary", "tbody", "tfoot", "thead"}
LISTS = {"ul", "ol", "menu", "dir"}
ANCHORS = {"headerlink", "anchor", "anchor-link", "hash-link"}  # classes of the links to a heading itself: a pilcrow


def read_html(data: bytes, path: str) -> list[Document]:
    text, notes = decode(data, declares=True)
    outline = Outline(path, notes=notes)
    title = read_into(outline, text)
    return [outline.document(otherwise=title)]


def read_into(outline: Outline, text: str, before: int = 0) -> str:
    """Adds the text of HTML to an outline; returns its `<title>`. before: number of lines before it in the file.

    A skipped or hidden tag that nothing closes would hide the rest of a page, so such tags are then read like others.
    """
    skipped, hides = set(SKIPPED), True
    while True:
        trial = Outline(outline.path)
        trial.above = list(outline.above)
        open_tags = _read(_Reader(trial, skipped, hides, before), text).hidden
        if not open_tags:
            break
        hides = hides and open_tags[0] in skipped
        skipped.discard(open_tags[0])
    reader = _read(_Reader(outline, skipped, hides, before), text)
    return " ".join("".join(reader.title).split())


def _read(reader: _Reader, text: str) -> _Reader:
    reader.feed(text)
    reader.close()
    reader.end_block()
    return reader


class _Reader(HTMLParser):
    """Writes blocks into an outline. Inline text gathers in `words`, lines of the block so far in `lines`."""

    def __init__(self, outline: Outline, skipped: set[str], hides: bool, before: int):
        super().__init__(convert_charrefs=True)
        self.outline, self.skipped, self.before = outline, skipped, before
        self.hides = hides  # whether attributes hide what is inside
        self.words: list[str] = []
        self.lines: list[str] = []
        self.title: list[str] = []
        self.hidden: list[str] = []  # open tags from the first that is skipped on
        self.first = self.last = 0  # lines of the file that the block is from
        self.level = 0  # of the heading that is open
        self.pre = self.tables = 0
        self.in_title = False
        self.lists: list[int | None] = []  # open lists: the number of the next item, or None for bullets
        self.marker = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.hidden or self.is_hidden(tag, attrs):
            if tag not in VOID:
                self.hidden.append(tag)
        elif tag == "title":
            self.in_title = not self.title  # an SVG's title is another's
        elif tag in HEADINGS:
            self.end_block()
            self.level = HEADINGS[tag]
        elif tag == "pre":
            self.end_line() if self.lists or self.tables else self.end_block()
            self.pre += 1
        elif tag in LISTS:
            self.end_line() if self.lists or self.tables else self.end_block()
            self.lists.append(1 if tag == "ol" else None)
        elif tag == "li":
            self.end_line()
            self.marker = self.next_marker()
        elif tag == "table":
            self.end_line() if self.lists or self.tables else self.end_block()
            self.tables += 1
        elif tag in ("td", "th"):
            self.words.append(" | " if "".join(self.words).strip() else " ")
        elif tag in ("br", "tr"):
            self.end_line()
        elif tag in BLOCKS:
            self.end_part()

    def handle_endtag(self, tag: str) -> None:
        if self.hidden:
            if tag in self.hidden:
                while self.hidden.pop() != tag:
                    pass
        elif tag == "title":
            self.in_title = False
        elif tag in HEADINGS:
            self.end_block()
        elif tag == "pre":
            self.end_line() if self.lists or self.tables else self.end_block()
            self.pre = max(0, self.pre - 1)
        elif tag in LISTS and self.lists:
            self.end_line()
            self.lists.pop()
            if not self.lists and not self.tables:
                self.end_block()
        elif tag == "table" and self.tables:
            self.end_line()
            if self.tables == 1 and not self.lists:
                self.end_block()
            self.tables = max(0, self.tables - 1)
        elif tag in ("tr", "li"):
            self.end_line()
        elif tag in BLOCKS:
            self.end_part()

    def handle_data(self, data: str) -> None:
        if self.in_title:
            self.title.append(data)
        elif not self.hidden:
            self.words.append(data)
            if data.strip():
                begin = self.getpos()[0] + self.before
                self.first = self.first or begin + len(data[: len(data) - len(data.lstrip())].split("\n")) - 1
                self.last = begin + data.rstrip().count("\n")

    def is_hidden(self, tag: str, attrs: list[tuple[str, str | None]]) -> bool:
        given = dict(attrs)
        classes = set((given.get("class") or "").split())
        away = "hidden" in given or given.get("aria-hidden") == "true" or given.get("role") == "navigation"
        away |= tag == "a" and bool(classes & ANCHORS)
        return tag not in VOID and (tag in self.skipped or (away and self.hides))

    def next_marker(self) -> str:
        indent = "  " * (len(self.lists) - 1)
        number = self.lists[-1] if self.lists else None
        if number is None:
            return f"{indent}- "
        self.lists[-1] = number + 1
        return f"{indent}{number}. "

    def end_part(self) -> None:
        """The end of a paragraph: inside a cell a blank, inside a list a line, else the end of a block."""
        if self.tables:
            self.words.append(" ")
        elif self.lists:
            self.end_line()
        else:
            self.end_block()

    def end_line(self) -> None:
        text = "".join(self.words)
        self.words = []
        if self.pre:
            if text.strip():
                self.lines.append(text.strip("\n"))
        elif line := " ".join(text.split()).strip(" |" if self.tables else None):
            self.lines.append((self.marker or "  " * len(self.lists)) + line)
            self.marker = ""

    def end_block(self) -> None:
        """Ends lists and tables too: a heading inside a table means a table of layout."""
        kind = CODE if self.pre and not self.lists else TABLE if self.tables else TEXT
        self.end_line()
        text, level = "\n".join(self.lines), self.level
        self.lines, self.level, self.marker = [], 0, ""
        if level:
            self.outline.heading(level, text, self.first)
        else:
            self.outline.add(text, self.first, self.last, kind)
        self.first = self.last = 0
        if kind == TABLE:
            self.tables = 0
        self.lists = []
