"""What counts as boilerplate, counted by hand; a document that is mostly that keeps its text."""

from __future__ import annotations

import pytest

from ds_rag.data.documents.boilerplate import Repeated, find_boilerplate, units_of, without_boilerplate
from ds_rag.data.documents.document import CODE, Block, Document

FOOTER = "Copyright by the makers"


def document(*texts: str, kind: str = "text") -> Document:
    return Document("d.md", "T", tuple(Block(text, kind=kind) for text in texts))


def own(n: int) -> str:
    return f"what document {n} says is its own text, of many more words than the footer below has"


def found(several: list[Document], /, **wanted: float) -> set[str]:
    """The texts that are left out of any of them."""
    keys = find_boilerplate(map(units_of, several), Repeated(**wanted))  # type: ignore[arg-type]
    return {text for each in several for text in without_boilerplate(each, keys)[1].values()}


def test_a_footer_is_left_out_and_nothing_else():
    several = [document(own(n), FOOTER) for n in range(5)]
    keys = find_boilerplate(map(units_of, several), Repeated())
    assert list(keys.values()) == [5]
    left, lost = without_boilerplate(several[2], keys)
    assert [block.text for block in left.blocks] == [own(2)] and list(lost.values()) == [FOOTER]


def test_from_how_many_documents_on():
    four = [document(own(n), FOOTER) for n in range(4)]
    others = [document(own(n)) for n in range(4, 16)]
    fifth = document(own(99), "COPYRIGHT  by the\tmakers")  # case and blanks do not count
    assert not found(four) and not found([*four, *others, fifth]), "5 of 17 are less than 30 %"
    assert found([*four, *others[:11], fifth]) == {FOOTER, "COPYRIGHT  by the\tmakers"}
    assert found(four, documents=4) and not found(four, documents=4, keep=True)
    assert not found([*four, *others], documents=4, fraction=0.3) and found([*four, *others], documents=4, fraction=0.2)


def test_copies_of_a_document_count_once():
    assert not found([document(own(1), FOOTER)] * 9)


def test_lines_of_text_count_but_not_lines_of_code():
    several = [document(f"{own(n)}\n{FOOTER}\n{own(n + 10)}") for n in range(6)]
    keys = find_boilerplate(map(units_of, several), Repeated())
    assert without_boilerplate(several[0], keys)[0].blocks[0].text == f"{own(0)}\n{own(10)}"
    assert not found([document(f"{own(n)}\nimport the usual things", kind=CODE) for n in range(6)])


def test_short_texts_are_none():
    assert not found([document(own(n), "See also:") for n in range(6)])


@pytest.mark.parametrize(("length", "kept"), [(3, True), (60, False)])
def test_near_copies_keep_their_text(length, kept):
    """Versions of one page have nearly all in common: that is their text."""
    shared = ["some text that all versions have in common", "and some more of it"]
    several = [document(*shared, " ".join([f"v{n}"] * length)) for n in range(6)]
    assert (not found(several)) == kept
