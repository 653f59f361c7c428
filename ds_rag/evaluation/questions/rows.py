"""Questions as rows, as `--train_data` reads them with their corpus, and which of them are held out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ds_rag.data.records import Passage
from ds_rag.data.splits import FRACTION, HELD_OUT, Split, SplitOptions, Unit, split_of_json, split_rows
from ds_rag.evaluation.questions.sieve import Question
from ds_rag.runtime.json_files import read_json

NUMBERED = re.compile(r"passage-\d+")  # what a passage without an id is called (data/records.py)


def row_of(question: Question, corpus: Sequence[Passage]) -> dict[str, Any]:
    """A row whose label is the passage's id. Its own id depends on that of the passage and the question's number, so
    that it stays when other documents change. `rank` and `gain` are for the reader; no training reads them."""
    passage = corpus[question.passage]
    row = {
        "id": f"{passage.id}-q{question.number}",
        "query": question.query,
        "answer": question.answer,
        **label_of(passage),
        "document": passage.origin.document,
        "place": passage.origin.place,
        "rank": question.rank,
        "gain": None if question.gain is None else round(question.gain, 4),
    }
    return {name: value for name, value in row.items() if value is not None}


def label_of(passage: Passage) -> dict[str, Any]:
    """By id, but by text where the corpus gives no ids: a line's number is that of another passage once lines are
    inserted."""
    return {"positive": passage.text} if NUMBERED.fullmatch(passage.id) else {"positive_ids": [passage.id]}


def rejected_row(question: Question, corpus: Sequence[Passage]) -> dict[str, Any]:
    return row_of(question, corpus) | {"filter": question.filter, "reason": question.reason}


def split_file(eval_out: Path) -> Path:
    """Where the split stands beside `--eval_out`."""
    return eval_out.with_name(eval_out.name + ".split.json")


def hold_out(
    questions: Sequence[Question], corpus: Sequence[Passage], fraction: float, file: Path
) -> tuple[Split, list[bool]]:
    """The split, and for each question whether it is held out: whole documents, about `fraction` of the questions.

    file: where an earlier call left its split; what that names stays where it is, and new documents are trained on.
    Raises UserError where the questions are too few.
    """
    wanted, known = SplitOptions(FRACTION, 2, HELD_OUT, fraction), None
    if file.exists():
        known = split_of_json(read_json(file, dict), str(file))
        if replace(known.wanted, fold=HELD_OUT) != wanted:
            known = None
    units = [Unit(corpus[q.passage].origin.document, q.query, (q.passage,)) for q in questions]
    split, folds = split_rows(units, wanted, known)
    if known:  # what has no question in this call stays where it was
        split.documents, split.queries = known.documents | split.documents, known.queries | split.queries
    return split, [fold == HELD_OUT for fold in folds]
