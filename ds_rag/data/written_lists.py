"""Lists and objects that were written as text: as JSON, or as Python and NumPy print them. pandas writes such cells to
CSV, and other tools put JSON into strings. Without this a model would train on brackets and quotes."""

from __future__ import annotations

import ast
import io
import itertools
import json
import re
import tokenize
import warnings
from collections.abc import Mapping

from ds_rag.data.bad_rows import Bad

# How a list or object of texts begins; "[1]", "[sic]" and "(a)" are beginnings of plain texts.
BEGIN = re.compile(r"""(\[|\{|\(\s*(?=['"\[{])|(np\.)?array\()\s*(?=['"\[{\](]|\}|array|np\.|None|null)""")
BROKEN = re.compile(
    r"""\[\s*(['"]).*\1\s*\]  |  \{\s*(['"])text\2\s*:.*\}  |  (np\.)?array\(\[.*\].*\)""", re.DOTALL | re.VERBOSE
)
UNREADABLE = object()


def unfold(value: object, column: str) -> object:
    """The list or object that a complete text spells out; any other value unchanged.

    A list without a text in it ("[2020]") stays text. Raises Bad for what looks like a list or object of texts but
    cannot be parsed, such as NumPy arrays printed without commas or with dots for omitted items.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not BEGIN.match(text) or text[-1] not in "]})":
        return value
    found = parsed(text)
    if found is UNREADABLE and BROKEN.fullmatch(text):
        raise Bad(f'\'{column}\' looks like a list but is no JSON, expected ["one", "two"]')
    if isinstance(found, Mapping) and found:
        return found
    return found if isinstance(found, list) and (not found or holds_text(found)) else value


def holds_text(items: list[object]) -> bool:
    return any(isinstance(item, str | Mapping) or (isinstance(item, list) and holds_text(item)) for item in items)


def parsed(text: str) -> object:
    """The value of a JSON text, or else of a Python literal; UNREADABLE where it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about backslashes in the text
            tree = ast.parse(text, mode="eval")
        return UNREADABLE if joins_strings(text) else value_of(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        return UNREADABLE


def value_of(node: ast.expr) -> object:
    """The value of a literal, or of NumPy's array([...], dtype=...) and np.str_('...'). Raises ValueError for anything
    else."""
    if isinstance(node, ast.Constant) and not isinstance(node.value, bytes) and node.value is not Ellipsis:
        return node.value
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [value_of(item) for item in node.elts]
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
        return dict(zip(keys, map(value_of, node.values), strict=True))
    if isinstance(node, ast.UnaryOp):  # a negative number
        return None
    if isinstance(node, ast.Name) and node.id == "nan":
        return None
    if isinstance(node, ast.Call) and node.args and ast.unparse(node.func).startswith(("array", "np.", "numpy.")):
        return value_of(node.args[0])
    raise ValueError(ast.dump(node))


def joins_strings(text: str) -> bool:
    """Are there two strings without a comma between them? Python would join them; NumPy prints several texts this
    way."""
    blank = (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT)
    kinds = [t.type for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in blank]
    return any(pair == (tokenize.STRING, tokenize.STRING) for pair in itertools.pairwise(kinds))
