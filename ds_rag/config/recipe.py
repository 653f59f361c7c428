"""Reads a recipe: `key: value` lines, and no other YAML.

Values stay text, like those of flags, because YAML reads some of them differently than most people expect: 010 as 8,
1:30 as 90, 1_000 as 1000. Anchors and aliases are refused, because a few lines of them can expand to gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds_rag.runtime.errors import UserError

MOST_BYTES = 1 << 20
NULL = ("", "~", "null", "Null", "NULL")
BOOLEANS = ("true", "false")


def read_recipe_lines(file: Path, name: str) -> dict[str, str | None]:
    """Key -> its text, None if the value is empty or null. name: what messages call the file. Raises UserError."""
    import yaml

    size = file.stat().st_size
    if size > MOST_BYTES:
        raise UserError(f"{name}: too large for a recipe", found=f"{size:,} bytes", expected=f"{MOST_BYTES:,} or less")
    try:
        text = file.read_text(encoding="utf-8-sig")
        return lines(yaml.parse(text, Loader=yaml.SafeLoader), name)
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8", found=error, expected="a text file") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read", found=error.strerror) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{name}: not YAML", found=error) from None


def lines(events: Iterator[Any], name: str) -> dict[str, str | None]:
    """Key -> its text, from the events of YAML's parser. Stops at the first event that a recipe must not have, because
    deeply nested YAML can take hours to parse."""
    import yaml

    found: dict[str, str | None] = {}
    where: dict[str, int] = {}
    key: Any = None
    depth = documents = 0
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent) and (documents := documents + 1) > 1:
            raise refused(event, name, "a second document", "one, of key: value lines")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise refused(event, name, f"an anchor or alias: {event.anchor}", "every value written out")
        if getattr(event, "tag", None):
            raise refused(event, name, f"a tag: {event.tag}", "plain values")
        if not depth and isinstance(event, yaml.MappingStartEvent):
            depth = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            what = f"{key.value}: a list or mapping" if key else "a list or mapping"
            raise refused(event, name, what, "key: value lines")
        elif isinstance(event, yaml.ScalarEvent) and not depth:
            if event.value not in NULL:
                raise refused(event, name, "text", "key: value lines")
        elif isinstance(event, yaml.ScalarEvent) and key is None:
            key = event
            if key.value in found:
                again = f"{key.value}, in lines {where[key.value]} and {line_of(key)}"
                raise UserError(f"{name}: repeated key", found=again, expected="once")
        elif isinstance(event, yaml.ScalarEvent):
            found[key.value], where[key.value], key = scalar_text(event), line_of(key), None
    return found


def scalar_text(event: Any) -> str | None:
    """The text of a scalar. If it is not quoted, empty and null become None, and booleans lower case."""
    if event.style is not None or not event.implicit[0]:  # quoted, or a block of lines
        return str(event.value)
    if event.value in NULL:
        return None
    return event.value.lower() if event.value.lower() in BOOLEANS else str(event.value)


def refused(event: Any, name: str, found: str, expected: str) -> UserError:
    return UserError(f"{name}, line {line_of(event)}", found=found, expected=expected)


def line_of(event: Any) -> int:
    """The line number of an event, from 1."""
    return int(event.start_mark.line) + 1
