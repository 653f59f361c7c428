"""Word, PowerPoint and Excel by way of Markdown; what is no such file is named without the library."""

from __future__ import annotations

import io
import zipfile

import pytest
from reading import below, lines, read

from ds_rag.data.documents import office
from ds_rag.data.documents.document import Unreadable
from ds_rag.data.documents.readers import documents_of

OPEN = "http://schemas.openxmlformats.org"
KIND = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"


def docx(*paragraphs: tuple[str, str]) -> bytes:
    """A Word file of (style, text)."""
    types = '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    types += f'<Override PartName="/word/document.xml" ContentType="{KIND}"/>'
    kind = f"{OPEN}/officeDocument/2006/relationships/officeDocument"
    link = f'<Relationship Id="r1" Type="{kind}" Target="word/document.xml"/>'
    body = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'
        for style, text in paragraphs
    )
    space = f'xmlns:w="{OPEN}/wordprocessingml/2006/main"'
    files = {
        "[Content_Types].xml": f'<Types xmlns="{OPEN}/package/2006/content-types">{types}</Types>',
        "_rels/.rels": f'<Relationships xmlns="{OPEN}/package/2006/relationships">{link}</Relationships>',
        "word/document.xml": f"<w:document {space}><w:body>{body}</w:body></w:document>",
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, f'<?xml version="1.0"?>{text}')
    return stream.getvalue()


WORD = docx(("Heading1", "Title"), ("Normal", "Text 1_2 *x*."), ("Heading2", "Sub"), ("Normal", "More."))


@pytest.mark.slow
def test_word_powerpoint_and_excel():
    pytest.importorskip("markitdown", reason="markitdown is not installed: pip install 'ds_rag[office]'")
    document = read(WORD, "c.docx")
    assert (document.title, document.unit) == ("Title", "paragraph")
    assert below(document) == [((), "Text 1_2 *x*."), (("Sub",), "More.")] and lines(document) == [(1, 1), (2, 2)]
    pptx, openpyxl = pytest.importorskip("pptx"), pytest.importorskip("openpyxl")
    slides, stream = pptx.Presentation(), io.BytesIO()
    for n in (1, 2):
        slide = slides.slides.add_slide(slides.slide_layouts[1])
        slide.shapes.title.text, slide.placeholders[1].text = f"Slide {n}", f"Text {n}"
    slides.save(stream)
    document = read(stream.getvalue(), "talk.pptx")
    assert below(document) == [(("Slide 1",), "Text 1"), (("Slide 2",), "Text 2")]
    assert (lines(document), document.unit) == ([(1, 1), (2, 2)], "slide")
    book, stream = openpyxl.Workbook(), io.BytesIO()
    book.active.title = "Prices"
    book.active.append(["what", "price"])
    book.active.append(["tea", 3])
    book.save(stream)
    document = read(stream.getvalue(), "b.xlsx")
    assert document.title == "b" and below(document) == [(("Prices",), "what | price\ntea | 3")]


def test_slides_of_its_markdown(monkeypatch):
    text = "<!-- Slide number: 1 -->\n# One\na\n\n<!-- Slide number: 2 -->\nb\n"
    monkeypatch.setattr(office, "converted", lambda data, suffix: text)
    document = read(WORD, "talk.pptx")
    assert [(b.first, b.text, b.headings) for b in document.blocks] == [(1, "a", ()), (2, "b", ())]
    assert (document.unit, document.title) == ("slide", "One")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"no archive", "not a zip archive"),
        (WORD[:-30], "not a zip archive"),
        (b"\xd0\xcf\x11\xe0 an old file", "encrypted, or in an older format"),
    ],
)
def test_what_is_no_office_file(data, says):
    with pytest.raises(Unreadable, match=says):
        documents_of(data, "a.docx")


def test_what_unpacks_to_too_much(monkeypatch):
    monkeypatch.setattr(office, "MOST_BYTES", 100)
    with pytest.raises(Unreadable, match="unpacks to"):
        documents_of(WORD, "a.docx")


def test_without_markitdown(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "markitdown", None)
    with pytest.raises(Unreadable, match="not installed") as caught:
        documents_of(WORD, "a.docx")
    assert caught.value.fix == "pip install 'ds_rag[office]'"
