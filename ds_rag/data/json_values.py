"""JSON that is not one object a line: a list of objects, or objects over several lines, read object by object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ds_rag.data.bad_rows import Faults
from ds_rag.data.format import open_text
from ds_rag.data.records import Record

PORTION = 1 << 20  # characters that are read at a time
BLANK = re.compile(r"[\s\ufeff]*")
DECODE = json.JSONDecoder()


class Values:
    """The text of a file as far as it is held, from `at` on, and the number of the line there."""

    def __init__(self, file: IO[str]):
        self.file, self.text, self.at, self.line = file, "", 0, 1

    def more(self) -> bool:
        """Reads on, at least as much again as is held, so that a long value is parsed a few times only."""
        held = self.text[self.at :]
        found = self.file.read(max(PORTION, len(held)))
        self.text, self.at = held + found, 0
        return bool(found)

    def move(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def mark(self) -> str:
        """The next character that is no blank, where the text then begins; "" at the end."""
        while True:
            blank = BLANK.match(self.text, self.at)
            assert blank is not None, "it matches nothing, too"
            self.move(blank.end())
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def value(self) -> object:
        """The value that begins here. Raises ValueError where there is none."""
        while True:
            try:
                found, end = DECODE.raw_decode(self.text, self.at)
            except json.JSONDecodeError:
                if not self.more():
                    raise
                continue
            if end < len(self.text) or not self.more():  # a number may go on
                self.move(end)
                return found


def read_values(path: Path, faults: Faults) -> Iterator[Record]:
    """The objects of a JSON list, or those that follow one another. Each has the number of its first line and its own.
    Where the JSON is broken, what follows cannot be told apart, which is one fault."""
    with open_text(path, newline=None) as file:
        values, item = Values(file), 0
        listed = values.mark() == "["
        if listed:
            values.move(values.at + 1)
        while (mark := values.mark()) not in ("", "]"):
            if mark == "," and item:
                values.move(values.at + 1)
                values.mark()
            number, item = values.line, item + 1
            where = f"{path}:{number} (item {item})"
            try:
                found = values.value()
            except (ValueError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                faults.add(number, where, f"invalid JSON in the object that begins here: {reason}", broken=True)
                return
            if isinstance(found, dict) and not unreadable(found):
                yield Record(found, number, where)
            else:
                what = "bytes that are not UTF-8" if isinstance(found, dict) else f"JSON {type(found).__name__}"
                faults.add(number, where, f"{what}, expected an object")
        where = f"{path}:{values.line}"
        if listed and not mark:
            faults.add(values.line, where, "the JSON list does not end: is the file cut off?", True)
            return
        if listed:
            values.move(values.at + 1)
            mark = values.mark()
        if mark:
            faults.add(
                values.line, f"{path}:{values.line}", "more after the end of the JSON list, expected one list", True
            )


def unreadable(found: object) -> bool:
    """Does a value hold a byte that is not UTF-8?"""
    if isinstance(found, dict):
        return any(unreadable(one) for pair in found.items() for one in pair)
    if isinstance(found, list):
        return any(unreadable(one) for one in found)
    return isinstance(found, str) and not found.isascii() and any("\udc80" <= char <= "\udcff" for char in found)
