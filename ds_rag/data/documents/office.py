"""Word, PowerPoint and Excel by markitdown, whose Markdown is read as any other."""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import replace
from pathlib import PurePosixPath

from ds_rag.data.documents.document import PARAGRAPH, SLIDE, Document, Outline, Unreadable
from ds_rag.data.documents.markdown import read_markdown_into

EXTRA = "pip install 'ds_rag[office]'"
MOST_BYTES = 1 << 30  # of a file once it is unpacked
SLIDE_MARK = re.compile(r"<!-- Slide number: (\d+) -->")


def read_office(data: bytes, path: str) -> list[Document]:
    check_archive(data)
    suffix = PurePosixPath(path).suffix.lower()
    text = converted(data, suffix)
    slides = SLIDE_MARK.split(text)
    outline = Outline(path, SLIDE if len(slides) > 1 else PARAGRAPH)
    if len(slides) == 1:
        read_markdown_into(outline, text)
        outline.blocks = [
            replace(block, first=n, last=n, numbers=()) for n, block in enumerate(outline.blocks, start=1)
        ]
        return [outline.document(PurePosixPath(path).stem if suffix == ".xlsx" else "")]  # its headings are sheets
    read_markdown_into(outline, slides[0])
    for number, slide in zip(slides[1::2], slides[2::2], strict=True):
        begin = len(outline.blocks)
        read_markdown_into(outline, slide)
        outline.blocks[begin:] = [
            replace(b, first=int(number), last=int(number), numbers=()) for b in outline.blocks[begin:]
        ]
    return [outline.document()]


def check_archive(data: bytes) -> None:
    """Raises Unreadable for what is no zip archive, as these files are, and for one that unpacks to too much."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        old = data.startswith(b"\xd0\xcf\x11\xe0")
        fix = "save it again, without a password, in today's format" if old else None
        raise Unreadable("encrypted, or in an older format" if old else "damaged: not a zip archive", fix) from None
    if unpacked > MOST_BYTES:
        raise Unreadable(f"unpacks to {unpacked / 2**30:.0f} GiB")


def converted(data: bytes, suffix: str) -> str:
    """The file as Markdown."""
    try:
        from markitdown import MarkItDown, StreamInfo
    except ImportError:
        raise Unreadable("office files need markitdown, which is not installed", EXTRA) from None
    found = MarkItDown(enable_plugins=False).convert_stream(io.BytesIO(data), stream_info=StreamInfo(extension=suffix))
    return str(found.text_content)
