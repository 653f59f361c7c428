"""From files to rows and passages, and texts tokenised once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ds_rag.config import DataConfig
from ds_rag.config.objectives import objectives_with
from ds_rag.data.almanac import make_world
from ds_rag.data.batch import Ids
from ds_rag.data.corpus_state import source_of
from ds_rag.data.data_settings import (
    GivenCorpus,
    check_described,
    columns_of,
    corpus_source,
    evaluation_limit,
    has_corpus,
    reading_of,
    splits,
)
from ds_rag.data.formats import Passage, Row, passages_of, read_rows
from ds_rag.data.passage_table import (
    Example,
    RagData,
    assume_first,
    build_table,
    keep_training_folds,
    unlabelled,
    with_also,
)
from ds_rag.data.splits import FOLDS, FRACTION, HELD_OUT, Split, SplitOptions, Unit, split_rows
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

__all__ = [
    "CHUNK",
    "Example",
    "Limit",
    "RagData",
    "TokenTable",
    "assume_first",
    "build_table",
    "read_data",
    "read_evaluation",
    "tokenize",
    "with_also",
]

NO_SCORES = "--teacher scores: a teacher's scores of each row's passages are needed"
UNLABELLED = (
    "no evaluation row has a labelled passage: recall is not measured, only whether a passage found contains the answer"
)
CHUNK = 512  # texts per call of a tokenizer


def read_data(
    data: DataConfig,
    builtin: bool,
    need_positive: bool = False,
    need_answers: bool = True,
    from_index: bool = False,
    known: Split | None = None,
    need_scores: bool = False,
) -> RagData:
    """Training rows, evaluation rows and corpus as the flags name them. Raises UserError.

    need_positive: the objective requires labelled positives. need_answers: the objective or the evaluation reads
    answers. from_index: candidates are retrieved, so rows need no passages where there is a corpus. known: the run's
    earlier split into training and held-out rows. need_scores: a teacher's scores of each training row's passages.
    """
    reading, source = replace(reading_of(data), scores=need_scores), None
    evaluation: list[Row] = []
    if builtin:
        world = make_world(data.world_seed)
        train, evaluation, corpus = world.train, world.evaluation, world.corpus
    else:
        columns, any_corpus = columns_of(data), has_corpus(data, "--eval_data")
        need_passages = not (from_index and any_corpus)
        source = source_of(name) if (name := corpus_source(data)) else None
        given = GivenCorpus(data, "--eval_data", reading)
        most = data.max_train_samples
        train = read_rows(data.train_data, columns, "--train_data", need_passages, need_answers, reading, most)
        if data.eval_data:
            most = evaluation_limit(data, "--eval_data")
            evaluation = read_rows(data.eval_data, columns, "--eval_data", not any_corpus, False, reading, most)
        corpus = given.passages or passages_of(train + evaluation)
        check_described(columns, train + evaluation, corpus)
    train, split = train[: data.max_train_samples], None
    if splits(data) and not builtin:
        split, train, evaluation = hold_out(data, corpus, train, known)
        reading.note(split.summary(len(train), len(evaluation)))
    evaluation = evaluation[: data.max_eval_samples]
    table = build_table(corpus, train, evaluation, reading)
    table.source, table.split = source, split
    if split and split.wanted.kind == FOLDS and data.fold_corpus == "train":
        keep_training_folds(table, split)
    if evaluation and not table.labelled:
        table.notices.append(UNLABELLED)
    if not data.train_labels:
        without_labels(table, from_index, folded=split is not None)
    if data.assume_first_positive:
        table.train = with_also([assume_first(row) for row in table.train])
    if need_scores and not all(row.scores for row in table.train):
        raise UserError(NO_SCORES, found="rows without", expected="--train_data FILE with a column teacher_scores")
    if need_positive:
        bare = [row.where for row in table.train if not row.positives]
        if bare:
            raise UserError(
                "this objective needs labelled positives",
                found=f"{len(bare)} rows without, the first at {bare[0]}",
                expected="a column positive, passage or positives",
                fix=f"label them, choose {objectives_with(needs_positive=False)}, or pass --assume_first_positive",
            )
    return table


def without_labels(table: RagData, from_index: bool, folded: bool) -> None:
    """Takes the labels off the training rows, which keep their candidates. from_index: candidates are retrieved, so
    that rows need none. A row without any is left out where folds may have taken its candidates, else a UserError."""
    bare = [unlabelled(row) for row in table.train]
    empty = [] if from_index else [row.where for row in bare if not row.others]
    if empty and not (folded and len(empty) < len(bare)):
        raise UserError(
            "--train_labels false: rows without any candidate",
            found=f"{len(empty)} rows, the first at {empty[0]}",
            expected="a column passages, or passages that are retrieved",
            fix="--candidates_from index,bm25",
        )
    if empty:
        table.notices.append(f"--train_labels false: {len(empty)} training rows have no candidate and are left out")
    table.train = [row for row in bare if from_index or row.others]


def hold_out(
    data: DataConfig, corpus: Sequence[Passage], rows: Sequence[Row], known: Split | None
) -> tuple[Split, list[Row], list[Row]]:
    """The split that the settings ask for, the training rows and the held-out ones, both in file order. known: an
    earlier split, which holds if it is of the same kind. Raises UserError as `split_rows` does."""
    if data.folds:
        assert data.fold is not None
        wanted = SplitOptions(FOLDS, data.folds, data.fold)
    else:
        wanted = SplitOptions(FRACTION, 2, HELD_OUT, data.eval_fraction)
    table = build_table(corpus, rows, [])
    examples = [assume_first(row) for row in table.train] if data.assume_first_positive else table.train
    units = [Unit(table.row_document(row), row.query, row.positives) for row in examples]
    same = known is not None and replace(known.wanted, fold=wanted.fold) == wanted
    split, folds = split_rows(units, wanted, known if same else None)
    parts: dict[bool, list[Row]] = {True: [], False: []}
    for row, fold in zip(rows, folds, strict=True):
        parts[fold == wanted.fold].append(row)
    return split, parts[False], parts[True]


def read_evaluation(data: DataConfig, builtin: bool, from_index: bool = False, known: Split | None = None) -> RagData:
    """Only the evaluation rows and the corpus to search, for `ds-rag evaluate`: those of `eval_data`, with `folds` only
    those of the fold; or those that a run holds out of its training rows. from_index, known: as in `read_data`."""
    if builtin:
        world = make_world(data.world_seed)
        return build_table(world.corpus, [], world.evaluation[: data.max_eval_samples])
    if splits(data):
        table = read_data(
            replace(data, fold_corpus="all", train_labels=True),
            builtin,
            need_answers=False,
            from_index=from_index,
            known=known,
        )
        return replace(table, train=[])
    assert data.eval_data
    reading, need_passages = reading_of(data), not (from_index and has_corpus(data, "--data"))
    most, given = evaluation_limit(data, "--data"), GivenCorpus(data, "--data", reading)
    rows = read_rows(data.eval_data, columns_of(data), "--data", need_passages, False, reading, most)
    corpus = given.passages or passages_of(rows)
    check_described(columns_of(data), rows, corpus)
    split = None
    if data.folds:
        split, rest, rows = hold_out(data, corpus, rows, known)
        reading.note(split.summary(len(rest), len(rows)))
    table = build_table(corpus, [], rows[: data.max_eval_samples], reading)
    return replace(table, split=split)


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

    def after(self, count: int) -> TokenTable:
        """A table of the texts after the first `count`, without copying."""
        start = self.starts[count]
        return TokenTable(self.flat[start:], self.starts[count + 1 :] - start)

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
