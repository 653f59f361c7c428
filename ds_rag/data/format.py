"""What a data format is to the table in `formats.py`: how it is recognised, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ds_rag.data.bad_rows import Faults
from ds_rag.data.records import Record

# (path, "rows" or "corpus", faults) -> records; what cannot be read goes to the faults.
Reader = Callable[[Path, str, Faults], Iterator[Record]]


@dataclass(frozen=True)
class Format:
    """A kind of file or folder. It is declared in the file of its reader."""

    what: str  # in a message: "a .csv file"
    recognises: Callable[[Path], bool]  # of a path where something is: is it of this kind? It is not opened for that
    read: Reader
    corpus_files: tuple[str, ...] = ()  # of a folder that holds rows and their corpus: the corpus's files
    fixed_columns: bool = False  # its columns have fixed names, which no flag changes


def has_suffix(*suffixes: str) -> Callable[[Path], bool]:
    """A file, not a folder, whose name ends in one of these; capitals count as small letters."""
    return lambda path: path.suffix.lower() in suffixes and not path.is_dir()


def holds(*names: str) -> Callable[[Path], bool]:
    """A folder with a file, or folder, of one of these names."""
    return lambda path: path.is_dir() and any((path / name).exists() for name in names)
