"""reStructuredText by docutils. Directives and roles that only Sphinx knows show what is inside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ds_rag.data.documents.character_sets import decode
from ds_rag.data.documents.document import CODE, LINE, TABLE, Document, Outline

DIRECTIVE = re.compile(r"^[ \t]*\.\.[ \t]+(?:\|[^|\n]+\|[ \t]+)?([\w:+.-]+?)::(?:\s|$)", re.MULTILINE)
ROLE = re.compile(r":([\w:+.-]+):`")
# Without text of their own: pictures, files, lists of other pages, settings.
EMPTY = {"toctree", "literalinclude", "index", "highlight", "module", "currentmodule", "py:module", "py:currentmodule"}
EMPTY |= {"tabularcolumns", "automodule", "autoclass", "autofunction", "automethod", "autosummary", "plot"}
SETTINGS = {
    "report_level": 5,
    "halt_level": 5,
    "file_insertion_enabled": False,  # no other file is read
    "raw_enabled": False,
    "doctitle_xform": False,  # the outline finds the title
    "smart_quotes": False,
    "syntax_highlight": "none",
    "_disable_config": True,
    "input_encoding": "unicode",
    "output_encoding": "unicode",
}
SKIPPED = ("comment", "system_message", "target", "substitution_definition", "image", "problematic", "raw", "meta")
LISTS = ("bullet_list", "enumerated_list", "definition_list", "field_list", "option_list", "docinfo")
WITHIN_ITEMS = ("definition", "description", "field_body")
WITHIN: tuple[str, ...] = (
    "section",
    "document",
    "block_quote",
    "note",
    "tip",
    "hint",
    "warning",
    "important",
    "caution",
    "attention",
)
WITHIN += ("danger", "error", "admonition", "topic", "sidebar", "container", "compound", "figure", "legend", "footnote")


def read_rst(data: bytes, path: str) -> list[Document]:
    from docutils.core import publish_doctree

    text, notes = decode(data)
    outline = Outline(path, LINE, notes)
    _know_names(text)
    _Walker(outline, text.split("\n")).walk(publish_doctree(text, settings_overrides=SETTINGS), 0, 0)
    return [outline.document()]


class _Walker:
    def __init__(self, outline: Outline, source: list[str]):
        self.outline, self.source = outline, source

    def walk(self, node: Any, level: int, line: int) -> None:
        """Adds a node to the outline. line: that of the node around it; docutils does not know every node's."""
        name = node.tagname
        line = node.line or line
        end = line + node.rawsource.count("\n") if isinstance(node.rawsource, str) else line
        if name in SKIPPED:
            return
        if name == "title" and level:
            self.outline.heading(level, node.astext(), line)
        elif name in ("literal_block", "doctest_block", "math_block"):
            self.code(node.astext(), line)
        elif name == "table":
            self.outline.add("\n".join(_rows(node)), line, kind=TABLE)
        elif name in LISTS:
            self.outline.add("\n".join(_lines(node)), line, end)
        elif name == "line_block":
            self.outline.add("\n".join(part.astext() for part in node), line, end)
        elif name in WITHIN:
            inner = level + 1 if name == "section" else level if name == "document" else 0
            for child in node:
                self.walk(child, inner if child.tagname in ("title", "section") else level, line)
        else:
            self.outline.add(" ".join(node.astext().split()), line, end)

    def code(self, text: str, line: int) -> None:
        """Of a directive docutils knows the line after it only, so the first line of the code is looked for."""
        begin, first = (
            text.strip("\n").split("\n")[0].strip(),
            self.outline.blocks[-1].last if self.outline.blocks else 1,
        )
        line = next((n for n in range(first, len(self.source) + 1) if self.source[n - 1].strip() == begin), line)
        self.outline.add(text, line, line + text.strip("\n").count("\n"), CODE)


def _lines(node: Any, depth: int = 0) -> Iterator[str]:
    """The lines of a list, items with their marker and nested lists indented."""
    indent = "  " * depth
    for n, item in enumerate(node, start=int(node.get("start", 1))):
        if item.tagname in SKIPPED:
            continue
        marker = f"{n}. " if node.tagname == "enumerated_list" else "- "
        for child in item if item.children and not isinstance(item[0], str) else [item]:
            if child.tagname in LISTS:
                yield from _lines(child, depth + 1)
                continue
            for part in list(child) if child.tagname in WITHIN_ITEMS else [child]:
                if part.tagname in LISTS:
                    yield from _lines(part, depth + 1)
                elif part.tagname not in SKIPPED and (text := part.astext().strip()):
                    keep = part.tagname in ("literal_block", "doctest_block")
                    for line in text.split("\n") if keep else [" ".join(text.split())]:
                        yield indent + marker + line
                        marker = "  "


def _rows(table: Any) -> Iterator[str]:
    for row in table.findall(lambda node: node.tagname == "row"):
        yield " | ".join(" ".join(entry.astext().split()) for entry in row)


def _know_names(text: str) -> None:
    """Registers the directives and roles in a text that docutils does not know: it would drop what they contain."""
    from docutils.parsers.rst import directives, roles
    from docutils.parsers.rst.languages import en

    for name in {name.lower() for name in DIRECTIVE.findall(text)} - en.directives.keys():
        directives.register_directive(name, _inside())
    for name in {name.lower() for name in ROLE.findall(text)} - en.roles.keys():
        roles.register_local_role(name, _shown)


def _inside() -> Any:
    """A directive that is its argument and its content, whatever its options."""
    from docutils import nodes
    from docutils.parsers.rst import Directive
    from docutils.parsers.rst.directives import unchanged

    class AnyOption(dict[str, Any]):
        def __missing__(self, key: str) -> Any:
            return unchanged

    class Inside(Directive):
        has_content = True
        optional_arguments = 1
        final_argument_whitespace = True
        option_spec = AnyOption(any=unchanged)

        def run(self) -> list[Any]:
            if self.name.lower() in EMPTY:
                return []
            around = nodes.container()
            if self.arguments:
                argument = nodes.paragraph("", self.arguments[0])
                argument.line = self.lineno
                around += argument
            self.state.nested_parse(self.content, self.content_offset, around)
            return [around]

    return Inside


def _shown(name: str, raw: str, text: str, line: int, inliner: Any, *_: Any, **__: Any) -> tuple[list[Any], list[Any]]:
    """A role's text: the title of `title <target>`, the last name of `~package.name`."""
    from docutils import nodes

    shown = re.sub(r"\s*<[^<>]*>$", "", text.replace("\0", ""))
    shown = shown.rsplit(".", 1)[-1] if shown.startswith("~") else shown.removeprefix("!")
    return [nodes.inline(raw, shown or text)], []
