"""Rows and a corpus that are in memory already, read by the same rules as files of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ds_rag.data.bad_rows import Faults, Reading
from ds_rag.data.by_id import ids_of
from ds_rag.data.columns import BY_NAME
from ds_rag.data.formats import rows_of_records
from ds_rag.data.layouts import flat_rows
from ds_rag.data.records import Passage, Record, Row, corpus_passages
from ds_rag.runtime.errors import UserError


def rows_from(
    rows: Iterable[Mapping[str, Any]],
    need_passages: bool,
    need_answers: bool,
    need_scores: bool = False,
    corpus: Sequence[Passage] | None = None,
) -> list[Row]:
    """Rows of mappings, whose keys are the columns that a file of rows may have: query, answer, positive, passages,
    negatives, ... (docs/data.md). corpus: where rows name its passages by id. Raises UserError with the number of each
    row that is wrong, from 1."""
    by_id = None if corpus is None else lambda: ids_of(corpus)
    faults = Faults("rows", "in memory", Reading(scores=need_scores, corpus_by_id=by_id))
    records = list(flat_rows(records_of(rows), BY_NAME, faults, need_answers))
    if not records:
        faults.settle(0)
        raise UserError("no rows", expected="at least one")
    found = rows_of_records(records, [], BY_NAME, faults, (need_passages, need_answers))
    faults.settle(len(found))
    return found


def corpus_from(passages: Sequence[str | Mapping[str, Any]]) -> list[Passage]:
    """Passages of texts, or of mappings with text and perhaps id and title. Raises as `rows_from`."""
    faults = Faults("corpus", "in memory")
    records = records_of({"text": passage} if isinstance(passage, str) else passage for passage in passages)
    if not records:
        raise UserError("an empty corpus", expected="at least one passage")
    found = corpus_passages(records, faults)
    faults.settle(len(found))
    return found


def records_of(rows: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Each with its number."""
    records = []
    for n, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise UserError(
                f"row {n}: not a mapping", found=type(row).__name__, expected='{"query": ..., "answer": ...}'
            )
        records.append(Record(row, n, f"row {n}"))
    return records
