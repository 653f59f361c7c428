"""HTML gives its text in blocks; scripts, styles and navigation are no text, broken tags lose none."""

from __future__ import annotations

import pytest
from reading import below, lines, read, texts

PAGE = """<!doctype html>
<html><head><title>Install &mdash; Site</title><style>p{}</style><script>var p = "<p>no</p>";</script></head>
<body><nav><a href="/">Home</a></nav>
<h1>Install<a class="headerlink" href="#i">¶</a></h1>
<p>First   para &amp; more<br>new line
<p>Second <b>pa</b>ra
<ul><li>one<li>two <ol><li>deep</li></ol></li></ul>
<table><tr><th>a<th>b</tr><tr><td>1</td><td><p>2</p></td></tr></table>
<pre>code
  indented</pre>
<h2>Sub</h2><div>text<script>bad()</script> after</div>
<div hidden>secret</div><div aria-hidden="true">icon</div>
</body></html>
"""


def test_blocks():
    document = read(PAGE, "b.html")
    assert document.title == "Install"
    assert below(document) == [
        ((), "First para & more\nnew line"),
        ((), "Second para"),
        ((), "- one\n- two\n  1. deep"),
        ((), "a | b\n1 | 2"),
        ((), "code\n  indented"),
        (("Sub",), "text after"),
    ]
    assert lines(document) == [(5, 5), (6, 6), (7, 7), (8, 8), (9, 10), (11, 11)]


def test_the_title_of_the_page_where_there_is_no_heading():
    assert read("<title>The\n page</title><p>x", "a.html").title == "The page"
    assert read("<p>x", "a.html").title == "a"


@pytest.mark.parametrize(
    "broken",
    [
        "<div><nav>never closed <p>kept",
        "<p>never closed <b>kept",
        "<p hidden>never closed<p>kept",
        "<li aria-hidden='true'>never closed<li>kept<nav>",
        "</div></p>never closed</nav> <i>kept</p>",
        "<ul><li>never closed<h1></ul>kept",
        "<table><tr><td>never closed <td>kept",
        "never closed <p kept",
        "<p>never closed &nosuch; kept <",
    ],
)
def test_broken_tags_lose_nothing_before_them(broken):
    found = " ".join([*texts(read("<p>first</p>" + broken, "a.html"))])
    assert "first" in found and "never closed" in found
    assert "kept" in found or broken == "never closed <p kept"  # that is a tag's attribute to a browser too


def test_a_heading_inside_a_table_of_layout_is_a_heading():
    page = "<table><tr><td>left</td><td><h2>News</h2><p>one</p></td></tr></table><p>two"
    assert below(read(f"<h1>T</h1>{page}", "a.html")) == [((), "left"), (("News",), "one"), (("News",), "two")]


def test_deep_nesting_is_no_recursion():
    deep = 5000
    assert texts(read("<div>" * deep + "x" + "</div>" * deep, "a.html")) == ["x"]
    assert "x" in texts(read("<ul><li>" * 500 + "x", "a.html"))[-1]
