"""reStructuredText, also with what only Sphinx knows; no file is read, nothing runs."""

from __future__ import annotations

from reading import below, lines, read, texts

PAGE = """\
=====
Title
=====

A paragraph with ``code``, :ref:`the text <target>`
and :class:`~a.b.C`.

.. toctree::
   :maxdepth: 2

   other

.. note:: A note.

.. versionadded:: 1.2
   Something new.

Sub
===

.. py:function:: foo(x)
   :no-index:

   Does foo.

* one
* two

  1. deep

term
   definition

.. code-block:: python

   x = 1

   y = 2

===  ===
a    b
===  ===
1    2
===  ===
"""


def test_blocks():
    document = read(PAGE, "d.rst")
    assert document.title == "Title"
    assert below(document) == [
        ((), "A paragraph with code, the text and C."),
        ((), "A note."),
        ((), "1.2 Something new."),
        (("Sub",), "foo(x)"),
        (("Sub",), "Does foo."),
        (("Sub",), "- one\n- two\n  1. deep"),
        (("Sub",), "- term\n  definition"),
        (("Sub",), "x = 1\n\ny = 2"),
        (("Sub",), "a | b\n1 | 2"),
    ]
    assert lines(document)[0] == (5, 6) and lines(document)[7] == (36, 38)


def test_a_name_that_was_registered_before_is_known_again():
    for _ in range(2):
        assert texts(read(".. deprecated:: 3\n   Old.\n\n:py:meth:`f`\n", "d.rst")) == ["3 Old.", "f"]


def test_faulty_markup_keeps_its_text(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    page = f"Bad |undefined| and `broken\n\n.. include:: {tmp_path}/secret.txt\n\n.. raw:: html\n\n   <b>\n\nEnd_ *x\n"
    found = " ".join(texts(read(page, "d.rst")))
    assert "undefined" in found and "broken" in found and "End" in found and "secret" not in found
