"""Readers of text files, by line so that a fault has one: CSV and JSONL."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ds_rag.data.bad_rows import Faults
from ds_rag.data.records import Record
from ds_rag.errors import UserError


def read_lines(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file. Bytes that are no text are faults, with their offset in the file."""
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            start = 3 if number == 1 and raw.startswith(b"\xef\xbb\xbf") else 0
            if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise UserError(
                    f"{faults.flag}: {path}:1: not UTF-8 (byte offset 0)",
                    found="UTF-16",
                    expected="UTF-8",
                    fix=f"iconv -f UTF-16 -t UTF-8 {path}",
                )
            try:
                line = raw[start:].decode("utf-8")
                at, wrong = raw.find(b"\0"), "a NUL byte"
            except UnicodeDecodeError as error:
                line = raw[start:].decode("utf-8", "replace")
                at, wrong = start + error.start, f"byte 0x{raw[start + error.start]:02x}, which is not UTF-8,"
            if at >= 0:
                faults.add(number, f"{path}:{number}", f"{wrong} at byte offset {offset + at}, expected UTF-8 text")
                line = line.replace("\0", "\ufffd")
            offset += len(raw)
            yield number, line


def read_csv(path: Path, what: str, faults: Faults) -> Iterator[Record]:
    """Comma-separated with a header. A record's line is the one it starts on; an empty cell is no value."""
    csv.field_size_limit(sys.maxsize)  # the default refuses cells over 128 KiB
    reader = csv.reader((line for _, line in read_lines(path, faults)), strict=True)
    header: list[str] = []
    number = 1
    try:
        for cells in reader:
            where = f"{path}:{number}"
            spoilt = faults.places and any(f"{path}:{n}" in faults.places for n in range(number, reader.line_num + 1))
            if cells and not header:
                faults.broken |= bool(spoilt)  # names that cannot be read
                header = _header(cells, where, faults.flag)
            elif spoilt:
                pass
            elif cells and len(cells) != len(header):
                faults.add(number, where, f"{len(cells)} cells, expected {len(header)} as in the header")
            elif cells:
                fields = {name: cell if cell.strip() else None for name, cell in zip(header, cells, strict=True)}
                yield Record(fields, number, where, flat=True)
            number = reader.line_num + 1
    except csv.Error as error:
        # Where a quote is astray, so is every line after it.
        message = f'stray or unclosed quote in the row that starts here ({error}), expected " doubled inside quotes'
        faults.add(number, f"{path}:{number}", message + "; what follows cannot be told apart", broken=True)


def _header(cells: list[str], where: str, flag: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise UserError(f"{flag}: {where}: not separated by commas", found=header[0], expected="a,b,c")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise UserError(f"{flag}: {where}: repeated column names", found=", ".join(repeated), expected="each once")
    return header


def read_jsonl(path: Path, what: str, faults: Faults) -> Iterator[Record]:
    """One JSON object a line; blank lines are passed over."""
    started = False
    for number, line in read_lines(path, faults):
        where = f"{path}:{number}"
        if not line.strip() or where in faults.places:
            continue
        if not started and line.lstrip().startswith("["):
            raise UserError(
                f"{faults.flag}: {where}: a JSON array",
                found="'['",
                expected="JSON lines: one object on each line",
                fix=f"jq -c '.[]' {path} > {path.with_suffix('.jsonl').name}",
            )
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
