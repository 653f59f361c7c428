"""The examples in a prompt that asks for questions: built-in ones, or some of the user's own rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ds_rag.data.bad_rows import Faults, Reading
from ds_rag.data.columns import Columns
from ds_rag.data.formats import READERS, Row, detect, read_rows, rows_of_records
from ds_rag.data.records import Record
from ds_rag.evaluation.containment import contains, framed
from ds_rag.runtime.errors import UserError

EXTRACTIVE, SHORT = "extractive", "short"  # the kinds of answers
FLAG = "--examples"
MOST_WORDS = 90  # of an example's passage in the prompt


@dataclass(frozen=True)
class Shot:
    """One example: a passage, a question about it, its answer."""

    passage: str
    query: str
    answer: str


SEA = (
    "The Wadden Sea stretches along the coasts of the Netherlands, Germany and Denmark. Twice a day the tide lays its "
    "mudflats bare, and in autumn some ten million migrating birds feed there."
)
PUMP = (
    "To reset the Norda pump, close valve B, hold the red button for five seconds and wait until the lamp turns green. "
    "If the lamp keeps blinking, the filter is clogged and must be replaced."
)
SCURVY = (
    "In 1747 the ship's surgeon James Lind gave twelve sailors with scurvy six different remedies. Only the two who "
    "ate oranges and lemons recovered within a week."
)
LEAVE = (
    "Employees with more than two years of service may take up to six weeks of unpaid leave a year. The request must "
    "reach the personnel office at least 30 days before the leave begins."
)
BUILT_IN: dict[str, list[Shot]] = {
    EXTRACTIVE: [
        Shot(
            SEA,
            "Along the coasts of which countries does the Wadden Sea stretch?",
            "the Netherlands, Germany and Denmark",
        ),
        Shot(PUMP, "Why does the lamp of the Norda pump keep blinking after a reset?", "the filter is clogged"),
        Shot(SCURVY, "What cured scurvy in James Lind's experiment of 1747?", "oranges and lemons"),
        Shot(LEAVE, "How early must a request for unpaid leave reach the personnel office?", "at least 30 days before"),
    ],
    SHORT: [
        Shot(SEA, "How many migrating birds feed in the Wadden Sea in autumn?", "about ten million"),
        Shot(PUMP, "Is a new filter needed if the lamp of the Norda pump keeps blinking after a reset?", "yes"),
        Shot(SCURVY, "How many remedies for scurvy did James Lind compare in 1747?", "six"),
        Shot(LEAVE, "Which employees may take unpaid leave?", "those with more than two years of service"),
    ],
}


@dataclass(frozen=True)
class ShotsWanted:
    """answers: EXTRACTIVE or SHORT. count: the most examples. seed: of their draw."""

    answers: str
    count: int
    seed: int


def read_shots(
    path: str, columns: Columns, known: Mapping[str, str], reading: Reading, wanted: ShotsWanted
) -> list[Shot]:
    """Examples from a file of rows. known: passage id -> text, of the corpus. Raises UserError as `read_rows` and
    `shots_of_rows` do."""
    return shots_of_rows(read_labelled(path, columns, known, reading), wanted)


def read_labelled(path: str, columns: Columns, known: Mapping[str, str], reading: Reading) -> list[Row]:
    """The rows of a file; those that name passages in `positive_ids` have the first one that is known as positive."""
    file, faults = Path(path).expanduser(), Faults(FLAG, path, reading)
    records = list(READERS[detect(file, FLAG)].read(file, "rows", faults))
    if not any("positive_ids" in record.fields for record in records):
        return read_rows(path, columns, FLAG, need_passages=False, need_answers=True, reading=reading)
    rows = rows_of_records([with_text(r, known) for r in records], iter(()), columns, faults, (False, True))
    faults.settle(len(rows))
    return rows


def with_text(record: Record, known: Mapping[str, str]) -> Record:
    """The record with the text of a passage in place of the ids."""
    fields = {name: value for name, value in record.fields.items() if name != "positive_ids"}
    ids = record.fields.get("positive_ids") or []
    texts = [known[id_] for id_ in (ids if isinstance(ids, list) else [ids]) if id_ in known]
    return record._replace(fields={"positive": texts[0], **fields} if texts else fields)


def shots_of_rows(rows: Sequence[Row], wanted: ShotsWanted) -> list[Shot]:
    """Some of the user's rows as examples, the same at every call: of those that can serve, drawn without replacement.

    A row's example is its first positive. With extractive answers only rows serve whose passage contains the answer.
    Raises UserError where none does.
    """
    usable = []
    for row in rows:
        passage = next(iter(row.positives), None)
        answer = next((a for a in row.answers if passage and contains(framed(passage), framed(a))), None)
        if passage and row.answers and (answer or wanted.answers != EXTRACTIVE):
            usable.append(Shot(excerpt(passage, answer), one_line(row.query), one_line(answer or row.answers[0])))
    if not usable:
        inside = ", and the answer word for word in it" if wanted.answers == EXTRACTIVE else ""
        labelled = "a labelled passage (its text, or its id in the passages)"
        raise UserError(
            "--examples: no row can be an example",
            found=f"{len(rows)} rows",
            expected=f"rows with a question, an answer and {labelled}{inside}",
            fix="leave --examples out: there are built-in ones",
        )
    order = np.random.default_rng(wanted.seed).permutation(len(usable))[: wanted.count]
    return [usable[n] for n in order.tolist()]


def excerpt(passage: str, answer: str | None) -> str:
    """The passage on one line, cut to MOST_WORDS words around the answer where it is longer."""
    words = passage.split()
    if len(words) <= MOST_WORDS:
        return " ".join(words)
    start = 0
    if answer:
        place = re.search(re.escape(" ".join(answer.split())), " ".join(words), re.IGNORECASE)
        before = len(" ".join(words)[: place.start()].split()) if place else 0
        start = max(0, min(before - MOST_WORDS // 2, len(words) - MOST_WORDS))
    return " ".join(words[start : start + MOST_WORDS])


def one_line(text: str) -> str:
    return " ".join(text.split())
