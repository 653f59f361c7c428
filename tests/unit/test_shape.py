"""The shape of the library: files to be read at one sitting, functions of one screen, arguments that can be counted."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "ds_rag"
FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "__init__.py" or p.read_text().strip()]  # not empty

MEDIAN_LINES, MOST_LINES = 120, 320  # of a file
MOST_FUNCTION_LINES = 60
MOST_PARAMETERS = 7  # beside `self`; a dataclass of options is one

# FILE:NAME of functions that are still over a limit; each goes as its function is reshaped.
TOO_LONG: set[str] = set()
TOO_MANY_PARAMETERS: set[str] = set()

Function = ast.FunctionDef | ast.AsyncFunctionDef


def inside(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def functions(text: str) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(text)) if isinstance(node, Function))


def length(function: Function) -> int:
    """Lines from `def` to the last, the docstring's with them."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def parameters(function: Function) -> int:
    """All kinds of them, `*args` and `**options` with them, beside `self` and `cls`."""
    a = function.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg)))]
    return len([name for name in names if name not in ("self", "cls")])


def over(limit: int, size_of: object) -> set[str]:
    assert callable(size_of)
    return {f"{inside(p)}:{f.name}" for p in FILES for f in functions(p.read_text()) if size_of(f) > limit}


def test_files_are_short() -> None:
    lines = {inside(path): len(path.read_text().splitlines()) for path in FILES}
    assert median(lines.values()) <= MEDIAN_LINES, median(lines.values())
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


@pytest.mark.parametrize(
    ("limit", "size_of", "known"),
    [(MOST_FUNCTION_LINES, length, TOO_LONG), (MOST_PARAMETERS, parameters, TOO_MANY_PARAMETERS)],
    ids=["lines", "parameters"],
)
def test_functions_are_short_and_take_few_arguments(limit: int, size_of: object, known: set[str]) -> None:
    found = over(limit, size_of)
    assert not found - known, "reshape it: a function for each thought, a dataclass for what goes together"
    assert not known - found, "no longer over the limit: take it off the list"


def test_what_is_counted() -> None:
    text = (
        "class A:\n    def f(self, a, /, b, *c, d=1, **e):\n        '''Two\n        lines.'''\n        def g(): ...\n"
    )
    outer, inner = functions(text)
    assert (length(outer), parameters(outer)) == (4, 5)
    assert (length(inner), parameters(inner)) == (1, 0)


def test_no_two_test_files_have_one_name() -> None:
    """pytest would take one for the other, and so would tests that import helpers of several folders."""
    root = PACKAGE.parent
    names = [p.name for folder in ("tests", "benchmarks") for p in (root / folder).rglob("*.py")]
    twice = {name for name in names if names.count(name) > 1 and name not in ("conftest.py", "__init__.py")}
    assert not twice
