"""Rows and corpus as one table of distinct passages, tokenised once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ds_rag.config import DataConfig
from ds_rag.config.objectives import objectives_with
from ds_rag.data.almanac import make_world
from ds_rag.data.bad_rows import Reading
from ds_rag.data.batch import Ids
from ds_rag.data.columns import Columns
from ds_rag.data.formats import Passage, Row, contains_corpus, passages_of, read_corpus, read_rows
from ds_rag.data.matching import find_in_corpus, missing_note, positives_elsewhere, refuse_ids_as_texts, texts_of
from ds_rag.data.source import Source, source_of
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

CHUNK = 512  # texts per call of a tokenizer
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

    @property
    def labelled(self) -> list[int]:
        """Numbers of the evaluation rows whose positives are known: retrieval metrics are computed over these."""
        return [n for n, row in enumerate(self.evaluation) if row.positives or row.judged]

    def qrels(self, row: Example) -> dict[str, int]:
        """Passage id -> grade. Relevant passages that are not in the table are included, and count as never found."""
        nowhere = {f"\0absent-{n}": grade for n, grade in enumerate(row.absent)}
        return {self.ids[p]: grade for p, grade in row.qrels.items()} | nowhere


def read_data(
    data: DataConfig,
    builtin: bool,
    need_positive: bool = False,
    need_answers: bool = True,
    from_index: bool = False,
) -> RagData:
    """Training rows, evaluation rows and corpus as the flags name them. Raises UserError.

    need_positive: the objective requires labelled positives. need_answers: the objective or the evaluation reads
    answers. from_index: candidates are retrieved, so rows need no passages where there is a corpus.
    """
    reading, source = reading_of(data), None
    evaluation: list[Row] = []
    if builtin:
        world = make_world(data.world_seed)
        train, evaluation, corpus = world.train, world.evaluation, world.corpus
    else:
        columns, need_passages = columns_of(data), not (from_index and has_corpus(data, "--eval_data"))
        most = data.max_train_samples
        train = read_rows(data.train_data, columns, "--train_data", need_passages, need_answers, reading, most)
        if data.eval_data:
            most = evaluation_limit(data, "--eval_data")
            evaluation = read_rows(data.eval_data, columns, "--eval_data", need_passages, False, reading, most)
        source = source_of(given) if (given := corpus_source(data)) else None
        corpus = read_given_corpus(data, "--eval_data", reading) or passages_of(train + evaluation)
    train, evaluation = train[: data.max_train_samples], evaluation[: data.max_eval_samples]
    table = build_table(corpus, train, evaluation, reading)
    table.source = source
    if evaluation and from_index and not table.labelled:
        table.notices.append("no evaluation row has a labelled passage, so retrieval is not measured")
    if data.assume_first_positive:
        table.train = with_also([assume_first(row) for row in table.train])
    if need_positive:
        bare = [row.where for row, example in zip(train, table.train, strict=True) if not example.positives]
        if bare:
            raise UserError(
                "this objective needs labelled positives",
                found=f"{len(bare)} rows without, the first at {bare[0]}",
                expected="a column positive, passage or positives",
                fix=f"label them, choose {objectives_with(needs_positive=False)}, or pass --assume_first_positive",
            )
    return table


def read_evaluation(data: DataConfig, builtin: bool, from_index: bool = False) -> RagData:
    """Only the evaluation rows and the corpus to search, for `ds-rag evaluate`. from_index: as in `read_data`."""
    if builtin:
        world = make_world(data.world_seed)
        return build_table(world.corpus, [], world.evaluation[: data.max_eval_samples])
    assert data.eval_data
    reading, need_passages = reading_of(data), not (from_index and has_corpus(data, "--data"))
    most = evaluation_limit(data, "--data")
    rows = read_rows(data.eval_data, columns_of(data), "--data", need_passages, False, reading, most)
    corpus = read_given_corpus(data, "--data", reading) or passages_of(rows)
    return build_table(corpus, [], rows[: data.max_eval_samples], reading)


def evaluation_limit(data: DataConfig, flag: str) -> int | None:
    """How many evaluation rows to read; None: all. Where their passages are the corpus all are read, for fewer passages
    would be easier to search."""
    return data.max_eval_samples if has_corpus(data, flag) else None


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
        id=data.id_column,
    )


def has_corpus(data: DataConfig, flag: str) -> bool:
    """Is a corpus given, or do the evaluation rows, named by `flag`, bring their own (as a BEIR folder does)?"""
    if data.corpus or not data.eval_data:
        return bool(data.corpus)
    return contains_corpus(data.eval_data, flag)


def corpus_source(data: DataConfig) -> str | None:
    """The path of the corpus; None where none is given."""
    return (data.corpus or data.eval_data) if has_corpus(data, "--eval_data") else None


def read_given_corpus(data: DataConfig, flag: str, reading: Reading | None = None) -> list[Passage]:
    """The passages of the given corpus; empty where none is given."""
    if not has_corpus(data, flag):
        return []
    path, flag = (data.corpus, "--corpus") if data.corpus else (str(data.eval_data), flag)
    return read_corpus(path, flag, reading)


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
    for text in sorted({t for row in evaluation for t in row.positives} & missing):
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
            id=row.id,
        )

    rows = with_also([example(r) for r in train]), [example(r) for r in evaluation]
    ids += [f"{ROW_PASSAGE}{n}" for n in range(len(ids), len(number))]
    return RagData(list(number), ids, corpus_size, *rows, notices)


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


class TokenTable:
    """Token ids of many texts in one flat int32 array: `table[n]` are the ids of text n. cut: how many texts were
    truncated."""

    def __init__(self, flat: Ids, ends: np.ndarray, cut: int = 0):
        self.flat, self.starts, self.cut = flat, np.concatenate([[0], ends]), cut

    def __getitem__(self, n: int) -> Ids:
        return self.flat[self.starts[n] : self.starts[n + 1]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def first(self, count: int) -> TokenTable:
        """A table of the first `count` texts, without copying."""
        return TokenTable(self.flat[: self.starts[count]], self.starts[1 : count + 1])

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


@dataclass(frozen=True)
class Limit:
    """At how many tokens texts are truncated, and the flag that sets it."""

    tokens: int
    flag: str


def tokenize(
    encode: Callable[[list[str]], list[list[int]]],
    texts: Sequence[str],
    console: Console,
    what: str,
    limit: Limit | None = None,
) -> TokenTable:
    """Tokenises all texts once, showing progress. limit: where `encode` truncates; the number of truncated texts is
    then reported.

    Raises UserError for a text without a single token, which no model could read."""
    parts, lengths, cut = [], [], 0
    with console.progress(len(texts), f"tokenising {what}", unit="text") as meter:
        for start in range(0, len(texts), CHUNK):
            ids = encode(list(texts[start : start + CHUNK]))
            parts.append(np.fromiter((t for x in ids for t in x), dtype=np.int32))
            lengths += [len(x) for x in ids]
            cut += getattr(ids, "cut", 0)
            meter.advance(len(ids))
    if limit is not None and 0 in lengths:
        raise UserError(
            f"{what}: {lengths.count(0)} without a single token",
            found=repr(texts[lengths.index(0)][:80]),
            expected="a text of which the tokenizer knows something",
            fix="correct the text, or choose a model whose tokenizer covers its script",
        )
    if limit is not None and cut:
        are = "is longer than" if cut == 1 else "are longer than"
        console.say(f"note: {what}: {cut} {are} {limit.tokens} tokens and cut there ({limit.flag})", style="yellow")
    flat = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    return TokenTable(flat, np.cumsum(lengths, dtype=np.int64), cut)
