"""PDF by pypdf: paragraphs put together from lines, headings from the file's own outline, a page as the place.

Lines at the top and the bottom that stand on most pages (running titles) are no text of the document: they would
interrupt its sentences.
"""

from __future__ import annotations

import io
import logging
import re
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import PurePosixPath
from shlex import quote
from typing import Any, NamedTuple

from ds_rag.data.documents.document import PAGE, Document, Outline, Unreadable, tidy

EXTRA = "pip install 'ds_rag[documents]'"
EDGE = 2  # lines at the top, and at the bottom, of a page that may be a running title
SHORT = 4  # words of a line whose numbers may be those of pages
LEAST_PAGES, LEAST_FRACTION = 4, 0.6  # pages on which it stands
LEAST_LETTERS = 8  # a page, on average, below which a file is taken for pictures of pages
LISTED = re.compile(r"^(?:[-*\u2022\u25e6\u25aa\u2023]|\(?\d{1,3}[.)]|\(?[a-z][.)])\s")
UNTITLED = re.compile(r"(?i)^(untitled.*|microsoft \w+ - .*|.*\.(docx?|dvi|pdf|tex|indd|odt|pptx?))$")


class Bookmark(NamedTuple):
    level: int
    text: str


def read_pdf(data: bytes, path: str) -> list[Document]:
    try:
        from pypdf import PdfReader
        from pypdf.errors import DependencyError
    except ImportError:
        raise Unreadable("PDF needs pypdf, which is not installed", EXTRA) from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it repairs much, and remarks on it
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted:
            unlock(reader, path)
        pages = [[line.strip() for line in tidy(page.extract_text() or "").split("\n")] for page in reader.pages]
    except DependencyError:
        raise Unreadable("encrypted by AES, which needs cryptography", "pip install cryptography") from None
    check_text(pages, path)
    notes = []
    running = running_lines(pages)
    if running:
        notes.append(f"running titles left out: {', '.join(repr(line) for line in list(running)[:3])}")
    bare = [n for n, lines in enumerate(pages, start=1) if not any(lines)]
    if bare:
        notes.append(f"{len(bare)} pages without text (pictures?): {', '.join(map(str, bare[:10]))}")
    outline = Outline(path, PAGE, notes)
    marks = bookmarks(reader)
    for number, lines in enumerate(pages, start=1):
        add_page(outline, number, without_running(lines, running), deque(marks.get(number, ())))
    return [outline.document(title_of(reader))]


def unlock(reader: Any, path: str) -> None:
    """Many files are encrypted with an empty password, against changes alone."""
    from pypdf.errors import DependencyError

    try:
        opened = bool(reader.decrypt(""))
    except DependencyError:
        raise
    except Exception:
        opened = False
    if not opened:
        name = PurePosixPath(path).name
        raise Unreadable(
            "encrypted with a password", f"qpdf --decrypt --password=PASSWORD {quote(path)} {quote(f'open-{name}')}"
        )


def check_text(pages: list[list[str]], path: str) -> None:
    letters = sum(char.isalnum() for lines in pages for line in lines for char in line)
    if not pages:
        raise Unreadable("no pages")
    if letters < LEAST_LETTERS * len(pages):
        name = PurePosixPath(path).name
        raise Unreadable(
            f"no text on {len(pages)} page{'s' * (len(pages) > 1)}: scanned?",
            f"OCR: ocrmypdf {quote(path)} {quote(f'text-{name}')}",
        )


def running_lines(pages: list[list[str]]) -> dict[str, None]:
    """What stands at the edge of most pages."""
    counts = Counter(line for lines in pages for line in dict.fromkeys(map(numberless, edges(lines))))
    least = max(LEAST_PAGES, LEAST_FRACTION * len(pages))
    return dict.fromkeys(line for line, count in counts.items() if count >= least)


def edges(lines: list[str]) -> list[str]:
    there = [line for line in lines if line]
    return there[:EDGE] + there[EDGE:][-EDGE:]


def numberless(line: str) -> str:
    """The line without case and blanks; if it is as short as `page 3 of 12`, without its numbers too."""
    words = line.casefold().split()
    return re.sub(r"\d+", "0", " ".join(words)) if len(words) <= SHORT else " ".join(words)


def without_running(lines: list[str], running: dict[str, None]) -> list[str]:
    there = [n for n, line in enumerate(lines) if line]
    at_edge = {*there[:EDGE], *there[EDGE:][-EDGE:]}
    return [line for n, line in enumerate(lines) if not (n in at_edge and numberless(line) in running)]


def bookmarks(reader: Any) -> dict[int, list[Bookmark]]:
    """Page number -> the entries of the file's outline that point to it, in order."""
    found: dict[int, list[Bookmark]] = {}

    def visit(entries: list[Any], level: int) -> None:
        for entry in entries:
            if isinstance(entry, list):
                visit(entry, level + 1)
            else:
                page = reader.get_destination_page_number(entry)
                if page is not None and page >= 0 and entry.title:
                    found.setdefault(page + 1, []).append(Bookmark(level, " ".join(tidy(str(entry.title)).split())))

    try:
        visit(reader.outline, 1)
    except Exception:  # a broken outline: the text is there all the same
        return {}
    return found


def add_page(outline: Outline, number: int, lines: list[str], marks: deque[Bookmark]) -> None:
    """Adds a page's paragraphs. A bookmark becomes a heading at the line that repeats it; else at the end of the page,
    or at its beginning where no heading is above."""
    while marks and not outline.above and not any(repeats(line, marks[0]) for line in lines):
        outline.heading(*marks.popleft(), number)
    part: list[str] = []
    for line in lines:
        if any(repeats(line, mark) for mark in marks):
            add_paragraphs(outline, number, part)
            part = []
            while not repeats(line, mark := marks.popleft()):
                outline.heading(*mark, number)
            outline.heading(*mark, number)
        else:
            part.append(line)
    add_paragraphs(outline, number, part)
    for mark in marks:
        outline.heading(*mark, number)
    if marks:
        outline.bare = None  # its text is on this page, only not recognised


def repeats(line: str, mark: Bookmark) -> bool:
    """Is the line the bookmark's heading, with a number before it or not?"""
    bare = re.sub(r"^[\dA-Z]{0,3}(\.\d+)*[.)]?\s+", "", line)
    wanted = "".join(mark.text.casefold().split())
    return bool(line) and wanted in ("".join(line.casefold().split()), "".join(bare.casefold().split()))


def add_paragraphs(outline: Outline, page: int, lines: list[str]) -> None:
    for paragraph in paragraphs(lines):
        outline.add(paragraph, page)


def paragraphs(lines: list[str]) -> Iterator[str]:
    """Lines joined to paragraphs, words that are divided at a line's end too. A paragraph ends at an empty line, before
    an item of a list, and after a sentence's end in a line that is notably shorter than the others."""
    lengths = sorted(len(line) for line in lines if line)
    full = lengths[len(lengths) * 3 // 4] if lengths else 0
    text = ""
    for line in lines:
        if text and (not line or LISTED.match(line)):
            yield text
            text = ""
        if not line:
            continue
        if re.search(r"[^\W\d]-$", text) and line[:1].islower():
            text = text[:-1] + line
        else:
            text = f"{text} {line}" if text else line
        if line.endswith((".", "!", "?", ":")) and len(line) < 0.75 * full:
            yield text
            text = ""
    if text:
        yield text


def title_of(reader: Any) -> str:
    try:
        title = " ".join(tidy(str(reader.metadata.title or "")).split()) if reader.metadata else ""
    except Exception:
        return ""
    return "" if UNTITLED.match(title) else title
