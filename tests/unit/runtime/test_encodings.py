"""No file of the product is read or written by the locale's encoding."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ds_rag.config.flags import as_text, parse
from ds_rag.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
FILES = [*sorted((ROOT / "ds_rag").rglob("*.py")), *sorted((ROOT / "launch").rglob("*.py"))]
OPENERS = {"open", "read_text", "write_text", "fdopen", "TextIOWrapper"}  # temporary files are binary by themselves


def by_locale(tree: ast.AST) -> list[int]:
    """Lines of calls that open a file as text without naming its encoding."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        text_of_path = not name.endswith("_text") or isinstance(node.func, ast.Attribute)
        if name not in OPENERS or ast.unparse(node.func) == "os.open" or not text_of_path:
            continue
        words = [n.value for a in [*node.args, *node.keywords] for n in ast.walk(a) if isinstance(n, ast.Constant)]
        binary = not name.endswith("_text") and any(
            isinstance(w, str) and "b" in w and set(w) <= set("rwxab+") for w in words
        )
        if not binary and not any(k.arg == "encoding" for k in node.keywords):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_text_file_is_opened_with_its_encoding(file):
    assert by_locale(ast.parse(file.read_text(encoding="utf-8"))) == []


def test_the_walk_sees_what_it_looks_for():
    code = (
        'open(p)\np.open("a")\np.read_text()\np.write_text("b")\nos.open(p, 0)\np.open("rb")\nopen(p, encoding="utf-8")'
    )
    assert by_locale(ast.parse(code)) == [1, 2, 3, 4]


def seen_in_ascii(text: str) -> str:
    """A word of the command line as Python gives it where the locale is ASCII's."""
    return text.encode("utf-8").decode("ascii", "surrogateescape")


@pytest.mark.parametrize("text", ["wer f\xfchrt \u6f22 ?", "plain"])
def test_texts_of_the_command_line_are_utf_8_where_the_locale_cannot_read_them(text):
    assert as_text(seen_in_ascii(text), "the question") == as_text(text, "the question") == text
    rows = ["--train_data", "rows.csv"]
    assert parse([*rows, "--query_prefix", seen_in_ascii(text)]).model.query_prefix == text
    assert parse([*rows, "--answer_column", seen_in_ascii(text)]).data.answer_column == text


def test_a_path_keeps_its_bytes():
    path = seen_in_ascii("f\xfchrt.csv")
    assert parse(["--train_data", path]).data.train_data == path


def test_bytes_that_are_no_text_are_a_mistake():
    with pytest.raises(UserError, match="the question: not valid text"):
        as_text(b"f\xfchrt".decode("ascii", "surrogateescape"), "the question")
