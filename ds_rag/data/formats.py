"""Rows and corpora from files: CSV, JSONL, Parquet, `datasets` folders and BEIR folders.

To add a format: a reader, its line in READERS, and its suffix (or its sign in `detect`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ds_rag.data.bad_rows import LOG, Faults, Reading
from ds_rag.data.beir import read_beir
from ds_rag.data.columns import BY_NAME, Columns, match_row_columns
from ds_rag.data.records import Passage, Record, Row, corpus_passages, field_names, to_rows
from ds_rag.data.tables import read_parquet, read_saved_dataset
from ds_rag.data.text_files import read_csv, read_jsonl
from ds_rag.errors import UserError, nearest

__all__ = ["READERS", "Columns", "Passage", "Row", "detect", "passages_of", "read_corpus", "read_rows"]

SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
KINDS = "a .csv, .jsonl or .parquet file, a folder of datasets' save_to_disk, or a BEIR folder"


def read_rows(
    path: str | Path,
    columns: Columns = BY_NAME,
    flag: str = "--train_data",
    need_passages: bool = True,
    need_answers: bool = True,
    reading: Reading | None = None,
) -> list[Row]:
    """The rows of `path`, in file order, checked.

    `flag` is the flag the path came from: it opens the messages, and `--train_data` prefers train splits.
    Relative paths are relative to the working directory. The layout of a BEIR folder is fixed, so `columns`
    does not apply to it. reading: what becomes of bad rows, and where notices go. Raises UserError with file:line, what
    was found and what was expected.
    """
    rows, faults = scan_rows(path, columns, flag, need_passages, need_answers, reading)
    faults.settle(len(rows))
    if not rows:
        raise UserError(f"{faults.source} holds no rows", expected="at least one row")
    return rows


def scan_rows(
    path: str | Path,
    columns: Columns,
    flag: str,
    need_passages: bool | None,
    need_answers: bool | None,
    reading: Reading | None = None,
) -> tuple[list[Row], Faults]:
    """The good rows, and what is wrong with the others. need_*: None where a column for it decides.

    Raises UserError for what concerns the whole file: its kind, its columns.
    """
    kind, records, faults = _records(path, "rows", flag, reading)
    if not records:
        return [], faults
    columns = BY_NAME if kind == "beir" else columns
    found = field_names(records)
    with faults.first():
        needed = {"need_passages": bool(need_passages), "need_answers": bool(need_answers)}
        names = match_row_columns(found, columns, faults.source, **needed)
    LOG.info("%s: columns %s; not used: %s", faults.source, names, [n for n in found if n not in names.values()])
    if need_passages is None:
        need_passages = bool({"positives", "passages"} & set(names))
    if need_answers is None:
        need_answers = "answers" in names
    return to_rows(records, names, faults, need_passages=need_passages, need_answers=need_answers), faults


def read_corpus(path: str | Path, flag: str = "--corpus", reading: Reading | None = None) -> list[Passage]:
    """The passages of `path`, in file order; ids are kept, or `passage-<n>`. Raises as `read_rows`."""
    passages, faults = scan_corpus(path, flag, reading)
    faults.settle(len(passages))
    if not passages:
        raise UserError(f"{faults.source} holds no passages", expected="at least one passage")
    return passages


def scan_corpus(path: str | Path, flag: str, reading: Reading | None = None) -> tuple[list[Passage], Faults]:
    """The good passages, and what is wrong with the others. Raises as `scan_rows`."""
    _, records, faults = _records(path, "corpus", flag, reading)
    return corpus_passages(records, faults), faults


def passages_of(rows: Iterable[Row]) -> list[Passage]:
    """The corpus where none is given: the distinct passages of the rows, as `passage-<n>`."""
    texts = dict.fromkeys(text for row in rows for text in (*row.positives, *row.passages, *row.negatives))
    return [Passage(f"passage-{n}", text) for n, text in enumerate(texts, start=1)]


def detect(path: Path, flag: str) -> str:
    """The key of READERS for this path. Raises UserError where nothing is there or nothing fits."""
    if not path.exists():
        around = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, around)
        raise UserError(
            f"{flag}: {path} does not exist",
            found=f"nothing there (relative paths start at {Path.cwd()})",
            expected=KINDS,
            fix=f"did you mean {path.parent / close}?" if close else None,
        )
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir())
        if {"dataset_dict.json", "state.json"} & set(inside):
            return "datasets"
        if {"corpus.jsonl", "queries.jsonl"} & set(inside):
            return "beir"
        readable = next((name for name in inside if Path(name).suffix in SUFFIXES), None)
        raise UserError(
            f"{flag}: {path} is neither a datasets folder nor a BEIR folder",
            found=", ".join(inside[:8]) or "an empty folder",
            expected=KINDS,
            fix=f"did you mean {path / readable}?" if readable else None,
        )
    if path.suffix.lower() in SUFFIXES:
        return SUFFIXES[path.suffix.lower()]
    raise UserError(f"{flag}: unknown kind of file {path}", found=f"suffix '{path.suffix}'", expected=KINDS)


def _records(path: str | Path, what: str, flag: str, reading: Reading | None) -> tuple[str, list[Record], Faults]:
    path = Path(path).expanduser()
    kind = detect(path, flag)
    faults = Faults(flag, str(path), reading or Reading())
    try:
        return kind, list(READERS[kind](path, what, faults)), faults
    except OSError as error:
        raise UserError(f"{faults.source} cannot be read", found=str(error), expected=KINDS) from error


# (path, "rows" or "corpus", faults) -> records; what cannot be read goes to the faults.
READERS: dict[str, Callable[[Path, str, Faults], Iterator[Record]]] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "datasets": read_saved_dataset,
    "beir": read_beir,
}
