"""Rows and corpora from files: CSV, TSV, JSON, Parquet, `datasets` folders, BEIR folders and those of MS MARCO.

To add a format: a file with its reader and its `Format`, which says how it is recognised; a line in FILES or READERS.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ds_rag.data.bad_rows import LOG, Faults, Reading
from ds_rag.data.beir import BEIR
from ds_rag.data.by_id import BY_ID, columns_by_id, with_passages
from ds_rag.data.columns import BY_NAME, Columns, match_row_columns
from ds_rag.data.documents.suffixes import documents_hint
from ds_rag.data.format import with_split
from ds_rag.data.hub_data import path_of
from ds_rag.data.layouts import flat_rows
from ds_rag.data.ms_marco import MS_MARCO
from ds_rag.data.records import Passage, Record, Row, corpus_passages, field_names
from ds_rag.data.rows import ID_LIKE, labels_relevance, refuse_ids, to_rows
from ds_rag.data.shards import format_of, shards_of
from ds_rag.data.tables import PARQUET, SAVED_DATASET
from ds_rag.data.teacher_scores import holds_scores
from ds_rag.data.text_files import CSV, JSONL, TSV
from ds_rag.runtime.errors import UserError, nearest

__all__ = ["READERS", "Columns", "Passage", "Row", "contains_corpus", "detect"]
__all__ += ["passages_of", "read_corpus", "read_rows"]

FILES = {"csv": CSV, "tsv": TSV, "jsonl": JSONL, "parquet": PARQUET}  # each may lie in shards too
# Every format, by the name that a manifest has for it. The first that recognises a path reads it.
READERS = FILES | {"datasets": SAVED_DATASET, "beir": BEIR, "msmarco": MS_MARCO, "shards": shards_of(FILES.values())}
KINDS = ", ".join(kind.what for kind in READERS.values())
LOOK = 1000  # records read beyond a limit to find the columns


def read_rows(
    path: str | Path,
    columns: Columns = BY_NAME,
    flag: str = "--train_data",
    need_passages: bool = True,
    need_answers: bool = True,
    reading: Reading | None = None,
    limit: int | None = None,
) -> list[Row]:
    """The checked rows of `path` in file order; with `limit` the first ones only, without reading further.

    `flag` is the flag that gave the path: messages begin with it, and `--train_data` prefers train splits. Relative
    paths start at the working directory. `columns` does not apply to a format with fixed ones (BEIR). reading:
    what to do with bad rows, and where to put notices. Raises UserError with file:line, what was found and what was
    expected.
    """
    rows, faults = scan_rows(path, columns, flag, need_passages, need_answers, reading, limit)
    faults.settle(len(rows))
    if not rows:
        found = "; ".join(faults.away) or None
        raise UserError(f"{faults.source} holds no rows", found=found, expected="at least one row")
    return rows


def scan_rows(
    path: str | Path,
    columns: Columns,
    flag: str,
    need_passages: bool | None,
    need_answers: bool | None,
    reading: Reading | None = None,
    limit: int | None = None,
) -> tuple[list[Row], Faults]:
    """The good rows, and the faults of the others. need_*: None: needed if a column for it exists.

    Raises UserError for faults of the file itself: its format, its columns.
    """
    kind, faults = _open(path, flag, reading, limit)
    stream = _records(kind, "rows", faults)
    if not READERS[kind].fixed_columns:
        stream = flat_rows(stream, columns, faults, need_answers is not False)
    records = list(islice(stream, None if limit is None else limit + LOOK))
    if not records:
        faults.note_left_out()
        return [], faults
    fixed = READERS[kind].fixed_columns
    need = need_passages, need_answers
    return rows_of_records(records, stream, BY_NAME if fixed else columns, faults, need, fixed=fixed), faults


def fields_of_rows(path: str | Path, flag: str) -> Iterator[Mapping[str, Any]]:
    """The fields of one row after the other as its file holds them, unchecked; none of a format with fixed columns
    (BEIR). What is no record is left out. Raises UserError for a path that cannot be read."""
    kind, faults = _open(path, flag, Reading(skip=True), None)
    if not READERS[kind].fixed_columns:
        yield from (record.fields for record in _records(kind, "rows", faults))


def rows_of_records(
    records: list[Record],
    stream: Iterable[Record],
    columns: Columns,
    faults: Faults,
    need: tuple[bool | None, bool | None],
    fixed: bool = False,
) -> list[Row]:
    """The good rows of the first records, in whose fields the columns are looked for, and of the stream after them.

    need: are passages needed, are answers? None where a column for them decides. fixed: no flag names a column. What is
    wrong with single records goes to `faults`; raises UserError for what concerns all of them.
    """
    (need_passages, need_answers), scores = need, faults.need_scores
    found = field_names(records)
    with faults.first():
        needed = {"need_passages": bool(need_passages), "need_answers": bool(need_answers)}
        names = match_row_columns(found, columns, faults.source, **needed, need_scores=scores, fixed=fixed)
        if scores is not False and "label" in names and holds_scores(records, names["label"][0]):
            names["scores"] = names.pop("label")
        if "label" in names and not labels_relevance(records, names["label"][0]):
            del names["label"]
        by_id = columns_by_id(records, names, faults)
        refuse_ids(records, names, by_id, faults.source)
    used = {name for several in names.values() for name in several}
    LOG.info("%s: columns %s", faults.source, names)
    faults.note_unused(name for name in found if name not in used)
    if need_passages is None:
        need_passages = bool({"positives", "passages"} & set(names))
    if need_answers is None:
        need_answers = "answers" in names
    every = with_passages(chain(records, stream), by_id, faults)
    rows = to_rows(every, names, faults, need_passages=need_passages, need_answers=need_answers)
    faults.note_left_out()
    return rows


def read_corpus(
    path: str | Path, flag: str = "--corpus", reading: Reading | None = None, columns: Columns = BY_NAME
) -> list[Passage]:
    """The passages of `path`, in file order; ids are kept, or `passage-<n>`. Raises as `read_rows`."""
    passages, faults = scan_corpus(path, flag, reading, columns)
    faults.settle(len(passages))
    if not passages:
        raise UserError(f"{faults.source} holds no passages", expected="at least one passage")
    return passages


def scan_corpus(
    path: str | Path, flag: str, reading: Reading | None = None, columns: Columns = BY_NAME
) -> tuple[list[Passage], Faults]:
    """The good passages, and the faults of the others. Raises as `scan_rows`."""
    kind, faults = _open(path, flag, reading, None)
    return corpus_passages(list(_records(kind, "corpus", faults)), faults, columns), faults


def passages_of(rows: Iterable[Row]) -> list[Passage]:
    """The corpus where none is given: the distinct passages of the rows, with ids `passage-<n>`. Raises UserError where
    all of them are ids."""
    texts = dict.fromkeys(text for row in rows for text in (*row.positives, *row.passages, *row.negatives))
    if texts and all(ID_LIKE.fullmatch(text) for text in texts):
        raise UserError(
            "rows name their passages by id, and there is no corpus",
            found=", ".join(map(repr, list(texts)[:3])),
            expected="the passages' texts",
            fix=f"{BY_ID}. Where these are the texts: --corpus FILE with them",
        )
    return [Passage(f"passage-{n}", text) for n, text in enumerate(texts, start=1)]


def detect(path: Path, flag: str) -> str:
    """The key of READERS for this path: that of the first format that recognises it. Raises UserError where the path
    does not exist or no format fits, and for a split of what has none."""
    path, split = with_split(path)
    if not path.exists():
        around = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, around)
        raise UserError(
            f"{flag}: {path} does not exist",
            found=f"nothing there (relative paths start at {Path.cwd()})",
            expected=KINDS,
            fix=f"did you mean {path.parent / close}?" if close else None,
        )
    for name, kind in READERS.items():
        if kind.recognises(path):
            if split and not kind.has_splits:
                raise UserError(f"{flag}: {path}: no split '{split}'", found=kind.what, expected=f"{path} alone")
            return name
    hint = documents_hint(path, rows=flag != "--corpus")
    if not path.is_dir():
        found = f"suffix '{path.suffix}'"
        raise UserError(f"{flag}: unknown kind of file {path}", found=found, expected=KINDS, fix=hint)
    inside = sorted(path.iterdir())
    files = [entry for entry in inside if format_of(entry, FILES.values())]
    likely = files or [entry for entry in inside if READERS["shards"].recognises(entry)]
    raise UserError(
        f"{flag}: {path} is neither a datasets folder nor a BEIR folder, nor one of numbered shards of one kind",
        found=", ".join(entry.name for entry in inside[:8]) or "an empty folder",
        expected=KINDS,
        fix=f"did you mean {likely[0]}?" if len(likely) == 1 else hint,
    )


def contains_corpus(path: str | Path, flag: str) -> bool:
    """Do these rows bring their own corpus, as a BEIR folder does? Raises UserError as `detect` does."""
    return bool(READERS[detect(path_of(path, flag), flag)].corpus_files)


def _open(path: str | Path, flag: str, reading: Reading | None, most: int | None) -> tuple[str, Faults]:
    path = path_of(path, flag)
    folder, split = with_split(path)
    return detect(path, flag), Faults(flag, str(folder), reading or Reading(), most, split)


def _records(kind: str, what: str, faults: Faults) -> Iterator[Record]:
    try:
        yield from READERS[kind].read(Path(faults.path), what, faults)
    except (OSError, EOFError, zlib.error) as error:  # the latter two of a broken .gz
        raise UserError(f"{faults.source} cannot be read", found=str(error), expected=KINDS) from error
