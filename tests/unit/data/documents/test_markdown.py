"""Markdown gives its text without marks, lists and tables readable, and the lines of each block."""

from __future__ import annotations

from reading import below, lines, read, texts

from ds_rag.data.documents.document import CODE, TABLE

GUIDE = """\
# Guide

First *para* with [a link](http://x.y), `code` and ![a picture](p.png)
on two lines.

## Lists

- one
- two
  1. deep
  2. deeper

     ```
     inside()
     ```

> quoted

| a | **b** |
|---|---|
| 1 | 2 |

```bash
make install

make test
```
"""


def test_blocks_and_their_lines():
    document = read(GUIDE, "docs/guide.md")
    assert (document.title, document.path, document.unit) == ("Guide", "docs/guide.md", "line")
    assert below(document) == [
        ((), "First para with a link, code and a picture on two lines."),
        (("Lists",), "- one\n- two\n  1. deep\n  2. deeper\n    inside()"),
        (("Lists",), "quoted"),
        (("Lists",), "a | b\n1 | 2"),
        (("Lists",), "make install\n\nmake test"),
    ]
    assert [block.kind for block in document.blocks[-2:]] == [TABLE, CODE]
    assert lines(document)[0] == (3, 4) and lines(document)[-1] == (24, 26)
    assert document.blocks[1].numbers == (8, 9, 10, 11, 14) and document.blocks[3].numbers == (19, 21)
    source = GUIDE.split("\n")
    assert source[23:26] == texts(document)[-1].split("\n"), "the lines of the code itself"


def test_front_matter_is_no_text():
    document = read("---\ntitle: My title\ntags: [x]\n---\n\nText.\n", "a.md")
    assert (document.title, texts(document), lines(document)) == ("My title", ["Text."], [(6, 6)])
    broken = read("---\ntitle: [\n---\nText.\n", "a.md")
    assert (broken.title, texts(broken)) == ("a", ["Text."])
    rule = read("Text.\n\n---\n\nMore.\n", "a.md")
    assert texts(rule) == ["Text.", "More."], "a line between paragraphs is none"


def test_html_inside():
    document = read(
        "<h1 align=center>Name</h1>\n\n<!-- hidden -->\n\ntext<br>more <b>bold</b>\n\n- a\n\n  <p>b</p>\n", "a.md"
    )
    assert document.title == "Name" and texts(document) == ["text\nmore bold", "- a\n  b"]


def test_underlined_headings():
    assert below(read("One\n===\n\na\n\nTwo\n---\n\nb\n", "x.md")) == [((), "a"), (("Two",), "b")]
