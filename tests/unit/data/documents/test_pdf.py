"""PDF, by files written here byte by byte: paragraphs from lines, headings from bookmarks, what cannot be read."""

from __future__ import annotations

import io

import pytest
from reading import below, lines, read, texts

from ds_rag.data.documents.document import Unreadable
from ds_rag.data.documents.pdf import paragraphs
from ds_rag.data.documents.readers import documents_of

pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed: pip install 'ds_rag[documents]'")

LINE_HEIGHT = 14


def pdf(*pages: list[str], title: str = "", bookmarks: list[tuple[str, int]] = ()) -> bytes:  # type: ignore[assignment]
    """A file with these lines on its pages. bookmarks: (text, number of its page from 1)."""
    objects: list[str] = [
        "",
        "",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]  # 1 catalog, 2 pages, 3 font
    kids = []
    for page in pages:
        shown = " ".join(f"({line.translate({40: None, 41: None})}) Tj 0 -{LINE_HEIGHT} Td" for line in page)
        stream = f"BT /F1 10 Tf 50 750 Td {shown} ET"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        fonts = "<< /Font << /F1 3 0 R >> >>"
        box = "/MediaBox [0 0 600 800]"
        objects.append(f"<< /Type /Page /Parent 2 0 R {box} /Resources {fonts} /Contents {len(objects)} 0 R >>")
        kids.append(len(objects))
    outline = ""
    if bookmarks:
        root = len(objects) + 1
        numbers = range(root + 1, root + 1 + len(bookmarks))
        objects.append(f"<< /Type /Outlines /First {numbers[0]} 0 R /Last {numbers[-1]} 0 R /Count {len(bookmarks)} >>")
        for number, (text, page) in zip(numbers, bookmarks, strict=True):
            following = f"/Next {number + 1} 0 R" if number < numbers[-1] else ""
            objects.append(f"<< /Title ({text}) /Parent {root} 0 R {following} /Dest [{kids[page - 1]} 0 R /Fit] >>")
        outline = f"/Outlines {root} 0 R"
    objects[0] = f"<< /Type /Catalog /Pages 2 0 R {outline} >>"
    objects[1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(f'{n} 0 R' for n in kids)}] >>"
    objects.append(f"<< /Title ({title}) >>")
    data, places = b"%PDF-1.4\n", []
    for n, content in enumerate(objects, start=1):
        places.append(len(data))
        data += f"{n} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    end = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n"
    end += f"<< /Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
    return data + end.encode()


FIRST = [
    "The quick brown fox jumps over the lazy dog and then con-",
    "tinues on the next line of the page.",
    "So it ends.",
]


def test_paragraphs_pages_and_title():
    document = read(pdf(FIRST, ["Another page with some words on it."], title="On foxes"), "a.pdf")
    assert (document.title, document.unit) == ("On foxes", "page")
    assert texts(document)[0].startswith("The quick brown fox jumps over the lazy dog and then continues on the next")
    assert " ".join(texts(document)).endswith("So it ends. Another page with some words on it.")
    assert lines(document)[0] == (1, 1) and lines(document)[-1] == (2, 2)


def test_bookmarks_are_headings_from_their_line_on():
    pages = ["1 Foxes", "Foxes are quick animals.", "2. Dogs", "Dogs are lazy animals."], ["They sleep a lot."]
    document = read(pdf(*pages, bookmarks=[("Foxes", 1), ("Dogs", 1)]), "a.pdf")
    assert below(document) == [
        (("Foxes",), "Foxes are quick animals."),
        (("Dogs",), "Dogs are lazy animals."),
        (("Dogs",), "They sleep a lot."),
    ]


def test_running_titles_are_left_out_and_said():
    pages = [["Journal of Foxes", f"What page {n} says is its own.", f"page {n} of 6"] for n in range(1, 7)]
    document = read(pdf(*pages), "a.pdf")
    assert texts(document) == [f"What page {n} says is its own." for n in range(1, 7)]
    assert "running titles left out: 'journal of foxes', 'page 0 of 0'" in document.notes
    few = read(pdf(*pages[:3]), "a.pdf")
    assert texts(few)[0].startswith("Journal of Foxes"), "on three pages it may be text"


def test_paragraphs_of_lines():
    several = [
        "A long line of some sixty characters that is full to its end.",
        "Short end.",
        "A new paragraph with a long",
    ]
    assert list(paragraphs([*several, "line.", "", "- item one", "- item two is", "longer"])) == [
        "A long line of some sixty characters that is full to its end. Short end.",
        "A new paragraph with a long line.",
        "- item one",
        "- item two is longer",
    ]
    assert list(paragraphs(["well-", "known A-", "Team"])) == ["wellknown A- Team"]


def encrypted(user: str) -> bytes:
    writer = pypdf.PdfWriter(io.BytesIO(pdf(FIRST)))
    writer.encrypt(user_password=user, owner_password="owner", algorithm="RC4-128")
    stream = io.BytesIO()
    writer.write(stream)
    return stream.getvalue()


def test_what_cannot_be_read_says_what_to_do():
    with pytest.raises(Unreadable, match="no text on 2 pages: scanned") as caught:
        documents_of(pdf([], []), "in/scan.pdf")
    assert caught.value.fix == "OCR: ocrmypdf in/scan.pdf text-scan.pdf"
    with pytest.raises(Unreadable, match="encrypted") as caught:
        documents_of(encrypted("secret"), "in/a.pdf")
    assert caught.value.fix and "qpdf" in caught.value.fix
    assert texts(read(encrypted(""), "a.pdf")), "with an empty password anybody reads it"
    whole = pdf(FIRST)
    for broken in (b"no PDF at all, but some text", b"%PDF-1.4\n", whole[:100]):
        with pytest.raises(Unreadable):
            documents_of(broken, "a.pdf")


def test_pages_without_text_among_others_are_named():
    document = read(pdf(FIRST, [], FIRST), "a.pdf")
    assert "1 pages without text (pictures?): 2" in document.notes


def test_without_pypdf(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    with pytest.raises(Unreadable, match="not installed") as caught:
        documents_of(pdf(FIRST), "a.pdf")
    assert caught.value.fix == "pip install 'ds_rag[documents]'"
