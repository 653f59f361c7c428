"""Rows and corpus as one table of distinct passages: what rows become once all files are read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ds_rag.data.bad_rows import Reading
from ds_rag.data.corpus_state import Source
from ds_rag.data.matching import find_in_corpus, missing_note, positives_elsewhere, refuse_ids_as_texts, texts_of
from ds_rag.data.origin import NOWHERE, Origin, PassageRecord, origins_of
from ds_rag.data.records import Passage, Row
from ds_rag.data.splits import Split, without

ROW_PASSAGE = "row-passage-"  # prefix of the ids of passages that are in rows but not in the corpus


@dataclass(frozen=True)
class Example:
    """A row whose passages are given by their numbers in the passage table."""

    query: str
    answers: tuple[str, ...]
    positives: tuple[int, ...]
    others: tuple[int, ...]  # unlabelled candidates and labelled negatives
    grades: tuple[int, ...] = ()  # of the positives; empty: 1 each
    negatives: tuple[int, ...] = ()  # those of `others` that are labelled
    also: tuple[int, ...] = ()  # positives of other rows with this query: not its own, and no negatives
    judged: bool = False  # its positives are known, even if there are none
    absent: tuple[int, ...] = ()  # grades of relevant passages that are not in the table
    id: str = ""  # the row's, as the file has it
    origin: Origin = NOWHERE  # of the row itself
    cluster: str | None = None  # what the column named by `--cluster_column` holds
    listed: tuple[int, ...] = ()  # labelled passages that stand among its candidates too
    scores: Mapping[int, float] = field(default_factory=dict, hash=False)  # a teacher's, of its passages
    where: str = field(default="", compare=False)  # "file:line"

    @property
    def qrels(self) -> dict[int, int]:
        """Passage number -> grade, of the positives."""
        return dict(zip(self.positives, self.grades or (1,) * len(self.positives), strict=True))

    @property
    def own(self) -> tuple[int, ...]:
        return self.positives + self.others


@dataclass
class RagData:
    """Rows and passages as read. The first `corpus_size` passages are the corpus that is searched."""

    texts: list[str]
    ids: list[str]
    corpus_size: int
    train: list[Example] = field(default_factory=list)
    evaluation: list[Example] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    source: Source | None = None  # the corpus's files, where one was given
    origins: list[Origin] = field(default_factory=list)  # of the passages; empty where none is known
    leads: np.ndarray | None = None  # int32: characters of each corpus passage's title; None where none has a title
    split: Split | None = None  # where evaluation rows are held out of the training rows
    added: int = 0  # passages at the end of the corpus that only evaluation rows have, as their labelled ones
    allowed: np.ndarray | None = None  # bool: the passages that training rows may have as candidates; None: all

    @property
    def labelled(self) -> list[int]:
        """Numbers of the evaluation rows whose positives are known: retrieval metrics are computed over these."""
        return [n for n, row in enumerate(self.evaluation) if row.positives or row.judged]

    def document_of(self, number: int) -> str | None:
        """The document of a passage."""
        return self.origins[number].document if self.origins else None

    def passage(self, number: int) -> PassageRecord:
        """All that is known of a passage."""
        origin, text = self.origins[number] if self.origins else NOWHERE, self.texts[number]
        lead = int(self.leads[number]) if self.leads is not None and number < len(self.leads) else 0
        title = text[:lead].rstrip() or origin.title
        return PassageRecord(number, self.ids[number], text, origin.document, title, origin.place)

    def row_document(self, row: Example) -> str | None:
        """The row's own document, else that of its first positive."""
        if row.origin.document is not None or not row.positives:
            return row.origin.document
        return self.document_of(row.positives[0])

    def cluster_of(self, row: Example) -> str | None:
        """What the row is clustered by in the statistics of an evaluation: `--cluster_column`, else its document."""
        return row.cluster if row.cluster is not None else self.row_document(row)

    def qrels(self, row: Example) -> dict[str, int]:
        """Passage id -> grade. Relevant passages that are not in the table are included, and count as never found."""
        nowhere = {f"\0absent-{n}": grade for n, grade in enumerate(row.absent)}
        return {self.ids[p]: grade for p, grade in row.qrels.items()} | nowhere


def build_table(
    corpus: Sequence[Passage], train: Sequence[Row], evaluation: Sequence[Row], reading: Reading | None = None
) -> RagData:
    """One table of passages: the corpus first, each text once, then texts that are only in rows. reading: how the files
    were read, for its notices. Raises UserError where rows name passages by their ids."""
    number: dict[str, int] = {}
    ids: list[str] = []
    for passage in corpus:
        if passage.text not in number:
            number[passage.text] = len(number)
            ids.append(passage.id)
    notices = list(reading.notices) if reading else []
    if repeated := len(corpus) - len(number):
        notices.append(f"{repeated} corpus passages repeat another's text and are one passage with it")
    every = [*train, *evaluation]
    meant = find_in_corpus(corpus, number, every)
    missing = texts_of(every) - number.keys() - meant.keys()
    for rows_of in (train, evaluation):
        refuse_ids_as_texts(corpus, rows_of, missing)
    notices += missing_note(train, missing, "training", "")
    notices += missing_note(evaluation, missing, "evaluation", " and were added to it")
    added = sorted({t for row in evaluation for t in row.positives} & missing)
    for text in added:
        number[text] = len(number)
    corpus_size = len(number)

    def place(texts: Iterable[str], without: tuple[int, ...] = ()) -> tuple[int, ...]:
        numbers = (n for t in texts for n in meant.get(t) or (number.setdefault(t, len(number)),))
        return tuple(n for n in dict.fromkeys(numbers) if n not in without)

    def example(row: Row) -> Example:
        # This order decides the numbers of passages that are only in rows: others first.
        others, positives = place(row.passages + row.negatives), place(row.positives)
        grades: dict[int, int] = {}
        for text, grade in zip(row.positives, row.grades, strict=False):  # without grades there are none
            grades |= {n: max(grade, grades.get(n, grade)) for n in place([text])}
        return Example(
            row.query,
            row.answers,
            positives,
            tuple(n for n in others if n not in positives),
            tuple(grades[n] for n in positives) if grades else (),
            place(row.negatives, positives),
            judged=row.judged,
            absent=row.absent,
            origin=row.origin,
            cluster=row.cluster,
            id=row.id,
            where=row.where,
            listed=place(row.listed),
            scores={n: score for text, score in row.scores.items() for n in place([text])},
        )

    rows = with_also([example(r) for r in train]), [example(r) for r in evaluation]
    ids += [f"{ROW_PASSAGE}{n}" for n in range(len(ids), len(number))]
    origins = origins_of(corpus, every, place, len(number))
    leads = title_lengths(corpus, number)
    return RagData(list(number), ids, corpus_size, *rows, notices, origins=origins, leads=leads, added=len(added))


def title_lengths(corpus: Sequence[Passage], number: Mapping[str, int]) -> np.ndarray | None:
    """(number of distinct corpus passages,) int32, of the first passage of each text; None where none has a title."""
    if not any(passage.lead for passage in corpus):
        return None
    leads = np.zeros(1 + max(number[passage.text] for passage in corpus), dtype=np.int32)
    for passage in reversed(corpus):
        leads[number[passage.text]] = passage.lead
    return leads


def with_also(rows: Sequence[Example]) -> list[Example]:
    """Training rows with `also` filled in: the positives that other rows have for the same query."""
    positives = [row.positives for row in rows]
    labelled = [row.positives + row.negatives for row in rows]
    elsewhere = positives_elsewhere([row.query for row in rows], positives, labelled)
    return [replace(row, also=also) if also != row.also else row for row, also in zip(rows, elsewhere, strict=True)]


def assume_first(row: Example) -> Example:
    """An unlabelled row with its first candidate taken as the positive; a labelled row as it is."""
    first = next((p for p in row.others if p not in row.negatives), None)
    if row.positives or first is None:
        return row
    return replace(row, positives=(first,), others=tuple(p for p in row.others if p != first))


def kept_of(row: Example) -> tuple[Collection[int], ...]:
    return row.positives, row.own, row.scores


def unlabelled(row: Example) -> Example:
    """The row without what it says of passages, right or wrong: only its candidates are left, labelled or not, and the
    passages that have a teacher's score."""
    bare = set(row.others) - set(row.negatives) | set(row.listed) | set(row.scores)
    others = tuple(p for p in row.own if p in bare)
    return replace(row, positives=(), grades=(), others=others, negatives=(), also=(), judged=False, absent=())


def keep_training_folds(table: RagData, split: Split) -> None:
    """Takes the passages of held-out documents from the training rows, and sets `allowed`; the corpus stays as it is.

    Barred are the passages of documents whose fold is held out, and passages without a document that are positives of
    held-out rows alone. A training row that had positives, passages at all or scores, and has none left is left out.
    """
    held_out = {name for name, fold in split.documents.items() if fold == split.wanted.fold}
    learned = {n for row in table.train for n in row.positives}
    judged = {n for row in table.evaluation for n in row.positives} - learned
    barred = {
        n
        for n in range(len(table.texts))
        if (document := table.document_of(n)) in held_out or (document is None and n in judged)
    }
    rows = []
    for row in table.train:
        positives, grades = without(row.positives, barred), row.qrels
        left = replace(
            row,
            positives=positives,
            others=without(row.others, barred),
            negatives=without(row.negatives, barred),
            grades=tuple(grades[n] for n in positives) if row.grades else (),
            scores={n: score for n, score in row.scores.items() if n not in barred},
        )
        if all(after or not before for before, after in zip(kept_of(row), kept_of(left), strict=True)):
            rows.append(left)
    if lost := len(table.train) - len(rows):
        table.notices.append(f"{lost} training rows have passages of held-out documents only and are left out")
    table.train = with_also(rows)
    table.allowed = np.array([n not in barred for n in range(len(table.texts))])
