"""What the data settings name: the columns, the corpus, how many rows to read, what to do with bad ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from ds_rag.config import DataConfig
from ds_rag.data.bad_rows import Reading
from ds_rag.data.by_id import ids_of
from ds_rag.data.columns import COLUMN_FLAGS, DESCRIBING, Columns
from ds_rag.data.formats import contains_corpus, read_corpus
from ds_rag.data.records import Passage, Row
from ds_rag.runtime.errors import UserError

DOCUMENT = "document"  # of `--cluster_column`: no column of its own, but the row's document


def evaluation_limit(data: DataConfig, flag: str) -> int | None:
    """How many evaluation rows to read; None: all. Where their passages are the corpus all are read, for fewer passages
    would be easier to search; and so they are where rows are chosen by their fold."""
    return data.max_eval_samples if has_corpus(data, flag) and not data.folds else None


def reading_of(data: DataConfig) -> Reading:
    """The `--on_bad_row` flag."""
    return Reading(skip=data.on_bad_row == "skip")


def columns_of(data: DataConfig) -> Columns:
    """The `--*_column` flags."""
    return Columns(
        query=data.query_column,
        answer=data.answer_column,
        positives=data.positive_column,
        passages=data.passages_column,
        negatives=data.negatives_column,
        scores=data.scores_column,
        id=data.id_column,
        document=data.document_column,
        title=data.title_column,
        place=data.place_column,
        cluster=None if data.cluster_column == DOCUMENT else data.cluster_column,
    )


def check_described(columns: Columns, rows: Sequence[Row], corpus: Sequence[Passage]) -> None:
    """Raises UserError for a column of documents, titles, places or clusters that a flag names and that neither the
    rows nor the corpus have, or have nothing in."""
    records: list[Row | Passage] = [*rows, *corpus]
    for role in DESCRIBING:
        name = getattr(columns, role)
        if name is None or any(described(row, role) for row in records):
            continue
        raise UserError(
            f"{COLUMN_FLAGS[role]} {name}: no row and no passage has a text or a whole number there",
            expected="the name of a column of the rows"
            + (" or of the corpus" if role in ("document", "place") else ""),
        )


def described(record: Row | Passage, role: str) -> str | None:
    if role == "cluster":
        return record.cluster if isinstance(record, Row) else None
    found: str | None = getattr(record.origin, role)
    return found


def splits(data: DataConfig) -> bool:
    """Are evaluation rows held out of the training rows?"""
    return data.eval_data is None and bool(data.folds or data.eval_fraction)


def evaluated_rows(data: DataConfig) -> str | None:
    """The path of the evaluation rows: a file of their own, or the training rows that some are held out of."""
    return data.eval_data or (data.train_data if splits(data) else None)


def has_corpus(data: DataConfig, flag: str) -> bool:
    """Is a corpus given, or do the evaluation rows, named by `flag`, bring their own (as a BEIR folder does)?"""
    rows = evaluated_rows(data)
    if data.corpus or not rows:
        return bool(data.corpus)
    return contains_corpus(rows, flag if data.eval_data else "--train_data")


def corpus_source(data: DataConfig) -> str | None:
    """The path of the corpus; None where none is given."""
    return (data.corpus or evaluated_rows(data)) if has_corpus(data, "--eval_data") else None


def read_given_corpus(data: DataConfig, flag: str, reading: Reading | None = None) -> list[Passage]:
    """The passages of the given corpus; empty where none is given."""
    if not has_corpus(data, flag):
        return []
    path, flag = str(evaluated_rows(data)), flag if data.eval_data else "--train_data"
    if data.corpus:
        path, flag = data.corpus, "--corpus"
    return read_corpus(path, flag, reading, columns_of(data))


class GivenCorpus:
    """The corpus that the settings give, read when it is first needed, and once: at the latest after the rows, before
    them where they name its passages by id. flag: of the evaluation rows, in messages."""

    def __init__(self, data: DataConfig, flag: str, reading: Reading):
        self._data, self._flag, self._reading = data, flag, reading
        if has_corpus(data, flag):
            reading.corpus_by_id = lambda: self.by_id

    @cached_property
    def passages(self) -> list[Passage]:
        """Empty where none is given."""
        return read_given_corpus(self._data, self._flag, self._reading)

    @cached_property
    def by_id(self) -> Mapping[str, Passage]:
        return ids_of(self.passages)
