"""What a data format is to the table in `formats.py`: how it is recognised, and how it is read."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ds_rag.data.bad_rows import Faults
from ds_rag.data.records import Record

# (path, "rows" or "corpus", faults) -> records; what cannot be read goes to the faults.
Reader = Callable[[Path, str, Faults], Iterator[Record]]
GZIP = ".gz"


@dataclass(frozen=True)
class Format:
    """A kind of file or folder. It is declared in the file of its reader."""

    what: str  # in a message: "a .csv file"
    recognises: Callable[[Path], bool]  # of a path where something is: is it of this kind? It is not opened for that
    read: Reader
    corpus_files: tuple[str, ...] = ()  # of a folder that holds rows and their corpus: the corpus's files
    fixed_columns: bool = False  # its columns have fixed names, which no flag changes
    has_splits: bool = False  # of a folder: one of several splits may be named, as in FOLDER:SPLIT


def plain_name(path: Path) -> Path:
    """The path without the `.gz` of a compressed file."""
    return path.with_suffix("") if path.suffix.lower() == GZIP else path


def suffix_of(path: Path) -> str:
    """The suffix in small letters, of a compressed file that before its `.gz`."""
    return plain_name(path).suffix.lower()


def has_suffix(*suffixes: str, compressed: bool = False) -> Callable[[Path], bool]:
    """A file, not a folder, whose name ends in one of these; capitals count as small letters. compressed: or in one of
    these and `.gz`."""

    def recognises(path: Path) -> bool:
        found = suffix_of(path) if compressed else path.suffix.lower()
        return found in suffixes and not path.is_dir()

    return recognises


def holds(*names: str) -> Callable[[Path], bool]:
    """A folder with a file, or folder, of one of these names."""
    return lambda path: path.is_dir() and any((path / name).exists() for name in names)


def open_bytes(path: Path) -> IO[bytes]:
    """The content of a file, decompressed where its name ends in `.gz`."""
    return gzip.open(path, "rb") if path.suffix.lower() == GZIP else path.open("rb")  # type: ignore[return-value]


def open_text(path: Path, newline: str | None = "") -> IO[str]:
    """The text of a UTF-8 file, decompressed where its name ends in `.gz`; a byte that is not UTF-8 becomes a lone
    surrogate. newline: as of `open`; by default lines keep their ends, LF, CRLF or CR."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8", errors="surrogateescape", newline=newline)


def with_split(path: Path) -> tuple[Path, str | None]:
    """(folder, split) of `FOLDER:SPLIT`, where that folder exists and nothing has the complete name; else the path
    itself and None."""
    folder, colon, split = str(path).rpartition(":")
    if colon and folder and split and not path.exists() and Path(folder).is_dir():
        return Path(folder), split
    return path, None
