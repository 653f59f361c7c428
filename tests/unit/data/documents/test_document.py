"""Headings above blocks, and which heading is the document's title."""

from __future__ import annotations

import pytest
from reading import below

from ds_rag.data.documents.document import CODE, Outline, place, tidy


def outline(*parts: tuple[int, str] | str) -> Outline:
    """Headings as (level, text), paragraphs as texts, each on its own line."""
    made = Outline("folder/file name.md")
    for n, part in enumerate(parts, start=1):
        made.add(part, n) if isinstance(part, str) else made.heading(*part, n)
    return made


def test_the_headings_above_each_block():
    made = outline("before", (1, "A"), "a", (3, "A.x"), "x", (2, "A.y"), "y", (1, "B"), "b")
    assert below(made.document()) == [
        ((), "before"),
        (("A",), "a"),
        (("A", "A.x"), "x"),
        (("A", "A.y"), "y"),
        (("B",), "b"),
    ]


@pytest.mark.parametrize(
    ("parts", "title", "first"),
    [
        ([(1, "T"), "a", (2, "S"), "b"], "T", ()),
        ([(2, "T"), "a", (3, "S"), "b"], "T", ()),
        (["x", (1, "T"), "a"], "file name", ()),  # it does not begin with it
        ([(1, "T"), "a", (1, "U"), "b"], "file name", ("T",)),  # one of two
        ([(2, "S"), "a", (1, "T"), "b"], "file name", ("S",)),
        (["a"], "file name", ()),
    ],
)
def test_the_title_is_the_only_highest_heading_at_the_beginning(parts, title, first):
    document = outline(*parts).document()
    assert (document.title, document.blocks[0].headings) == (title, first)


def test_a_title_that_the_file_states():
    parts = (1, "T"), "a"
    assert below(outline(*parts).document("Stated")) == [(("T",), "a")]
    assert below(outline(*parts).document(" t ")) == [((), "a")], "the same title, not twice"
    assert outline("a").document(otherwise="Weak").title == "Weak"
    assert outline(*parts).document(otherwise="Weak").title == "T"


def test_a_heading_with_nothing_below_it_is_text():
    made = outline((1, "T"), "a", (2, "Bare"), (2, "Full"), "b", (3, "Last"))
    assert below(made.document()) == [((), "a"), ((), "Bare"), (("Full",), "b"), (("Full",), "Last")]
    assert below(outline((1, "Only")).document()) == [((), "Only")]


def test_blank_blocks_and_headings_are_left_out():
    assert not outline(" \n\t", "\u200b", (1, "  ")).document().blocks


def test_what_no_passage_may_contain():
    assert tidy("a\r\nb\rc\0d\u00ade  \n\udc80") == "a\nb\ncde\n???".replace("???", "\ufffd" * 3)
    made = Outline("x.md")
    made.add("\n    code\n  more \n\n", 1, kind=CODE)
    assert made.blocks[0].text == "    code\n  more"


def test_places():
    assert (place("page", 3, 3), place("line", 2, 5)) == ("page 3", "lines 2-5")
