"""Readers of CSV, TSV and JSONL, line by line so that a fault has a line number; each may be compressed by gzip."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from shlex import quote

from ds_rag.data.bad_rows import Faults
from ds_rag.data.format import Format, has_suffix, open_bytes, open_text, plain_name, suffix_of
from ds_rag.data.json_values import read_values
from ds_rag.data.records import Record
from ds_rag.runtime.errors import UserError


def read_lines(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file; a line ends with LF, CRLF or (old Macs) CR. Invalid bytes are added to `faults`,
    with their offset in the file."""
    refuse_wide(path, faults.flag)
    offset = 0
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            size = len(line)
            if not line.isascii() or "\0" in line:
                size = len(line.encode("utf-8", "surrogateescape"))
                wrong = next((n for n, char in enumerate(line) if char == "\0" or "\udc80" <= char <= "\udcff"), None)
                if wrong is not None:
                    byte = f"byte 0x{ord(line[wrong]) - 0xDC00:02x}, which is not UTF-8,"
                    what = "a NUL byte" if line[wrong] == "\0" else byte
                    at = offset + len(line[:wrong].encode("utf-8", "surrogateescape"))
                    faults.add(number, f"{path}:{number}", f"{what} at byte offset {at}, expected UTF-8 text")
                    line = re.sub("[\0\udc80-\udcff]", "\ufffd", line)
            offset += size
            yield number, line.removeprefix("\ufeff") if number == 1 else line


def refuse_wide(path: Path, flag: str) -> None:
    """Raises UserError for UTF-16 and UTF-32, with a byte-order mark or without."""
    with open_bytes(path) as file:
        start = file.read(64)
    marks = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
    found = next((name for mark, name in marks.items() if start.startswith(mark)), None)
    if found is None and len(start) >= 4 and start[0] and start[1::2].count(0) == len(start[1::2]):
        found = "UTF-32LE" if start[2:4] == b"\0\0" else "UTF-16LE"  # of ASCII text
    if found is None and len(start) >= 4 and start[1] and start[0::2].count(0) == len(start[0::2]):
        found = "UTF-16BE"
    if found is not None:
        plain, name = plain_name(path), quote(str(path))
        packed = plain != path
        raise UserError(
            f"{flag}: {path}:1: not UTF-8 (byte offset 0)",
            found=found,
            expected="UTF-8",
            fix=(f"gunzip -c {name} | iconv -f {found} -t UTF-8" if packed else f"iconv -f {found} -t UTF-8 {name}")
            + f" > {quote(plain.stem + '.utf8' + plain.suffix)}",
        )


def read_tsv(path: Path, what: str, faults: Faults) -> Iterator[Record]:
    """Values separated by tabs, with a header, quoted as in CSV. `triples*.tsv` are MS MARCO's: query, positive and
    negative, without a header and without quotes."""
    if not path.name.lower().startswith("triples"):
        yield from read_csv(path, what, faults, "\t")
        return
    for record in read_cells(path, ("query", "positive", "negative"), faults):
        if record.number > 1 or list(record.fields.values()) != list(record.fields):  # a header all the same
            yield record


def read_cells(path: Path, names: Sequence[str], faults: Faults) -> Iterator[Record]:
    """The lines of a file without a header and without quotes, their cells separated by tabs."""
    for number, line in read_lines(path, faults):
        where = f"{path}:{number}"
        cells = line.rstrip("\r\n").split("\t")
        if not line.strip() or where in faults.places:
            continue
        if len(cells) == len(names):
            yield Record(dict(zip(names, cells, strict=True)), number, where)
        else:
            faults.add(number, where, f"{len(cells)} cells, expected {len(names)} between tabs: {', '.join(names)}")


def read_csv(path: Path, what: str, faults: Faults, mark: str = ",") -> Iterator[Record]:
    """Comma-separated values with a header. The line number of a record is that of its first line; an empty cell has no
    value. A first line `sep=;`, as Excel writes it, names another separator than `mark`."""
    csv.field_size_limit(sys.maxsize)  # the default refuses cells over 128 KiB
    lines: Iterator[str] = (line for _, line in read_lines(path, faults))
    first = next(lines, "")
    named = re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE)
    before = 1 if named else 0
    lines = lines if named else chain([first], lines)
    reader = csv.reader(lines, strict=True, delimiter=named[1] if named else mark)
    header: list[str] = []
    number = 1 + before
    try:
        for cells in reader:
            where = f"{path}:{number}"
            end = reader.line_num + before + 1
            spoilt = faults.places and any(f"{path}:{n}" in faults.places for n in range(number, end))
            if cells and not header:
                faults.broken |= bool(spoilt)  # names that cannot be read
                header = _header(cells, where, faults.flag, mark)
            elif spoilt:
                pass
            elif cells and len(cells) != len(header):
                faults.add(number, where, f"{len(cells)} cells, expected {len(header)} as in the header")
            elif cells:
                fields = {name: cell if cell.strip() else None for name, cell in zip(header, cells, strict=True)}
                yield Record(fields, number, where)
            number = end
    except csv.Error as error:
        # After a stray quote every later line is unreliable.
        message = f'stray or unclosed quote in the row that starts here ({error}), expected " doubled inside quotes'
        faults.add(number, f"{path}:{number}", message + "; what follows cannot be told apart", broken=True)


def _header(cells: list[str], where: str, flag: str, expected: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    others = ";\t|,".replace(expected, "")
    if len(header) == 1 and (mark := next((mark for mark in others if mark in header[0]), None)):
        raise UserError(
            f"{flag}: {where}: not separated by {'commas' if expected == ',' else 'tabs'}",
            found=header[0],
            expected="a,b,c" if expected == "," else "a<tab>b<tab>c",
            fix=f"put a line before it that names the separator: sep={mark if mark != chr(9) else '<tab>'}",
        )
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise UserError(f"{flag}: {where}: repeated column names", found=", ".join(repeated), expected="each once")
    return header


def read_jsonl(path: Path, what: str, faults: Faults) -> Iterator[Record]:
    """One JSON object per line; blank lines are skipped. In a `.json` file also one list of objects, or objects over
    several lines."""
    if suffix_of(path) == ".json" and not begins_with_a_row(path):
        refuse_wide(path, faults.flag)
        yield from read_values(path, faults)
        return
    started, opened = False, 0
    for number, line in read_lines(path, faults):
        where = f"{path}:{number}"
        if not line.strip() or where in faults.places:
            continue
        if not started and line.lstrip().startswith("["):
            raise UserError(
                f"{faults.flag}: {where}: a JSON array",
                found="'['",
                expected="JSON lines: one object on each line; or a name that ends in .json",
                fix=f"jq -c '.[]' {quote(str(path))} > {quote(path.stem + '.lines.jsonl')}",
            )
        if opened and line.lstrip().startswith('"'):
            raise UserError(
                f"{faults.flag}: {path}:{opened}: a JSON object over several lines",
                found="'{'",
                expected="JSON lines: one object on each line; or a name that ends in .json",
                fix=f"jq -c . {quote(str(path))} > {quote(path.stem + '.lines.jsonl')}, where each object is a row",
            )
        opened = number if not started and line.strip() == "{" else 0
        started = True
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = str(error)
            if isinstance(error, json.JSONDecodeError):
                reason = f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"
            cut = "" if line.endswith("\n") else " (last line, without newline: is the file cut off?)"
            faults.add(number, where, f"invalid JSON: {reason}{cut}, expected one object on each line")
            continue
        if isinstance(fields, dict):
            yield Record(fields, number, where)
        else:
            faults.add(number, where, f"JSON {type(fields).__name__}, expected an object")


def begins_with_a_row(path: Path) -> bool:
    """Does a file begin with JSON lines? Not if its first line opens a list, or an object that does not end there."""
    with open_text(path) as file:
        first = next((line for line in file if line.strip("\ufeff \t\r\n")), "").strip("\ufeff \t\r\n")
    if not first.startswith("{"):
        return not first.startswith("[")
    try:
        json.loads(first)
    except json.JSONDecodeError as error:
        return error.pos < len(first) - 1
    except RecursionError:
        pass
    return True


CSV = Format("a .csv file", has_suffix(".csv", compressed=True), read_csv)
TSV = Format("a .tsv file", has_suffix(".tsv", compressed=True), read_tsv)
JSONL = Format(
    "a .jsonl (.ndjson, .json) file, each of them also with .gz",
    has_suffix(".jsonl", ".ndjson", ".json", compressed=True),
    read_jsonl,
)
