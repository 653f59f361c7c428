"""The examples in a prompt that asks for questions: built-in ones, or some of the user's own rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ds_rag.data.bad_rows import Reading
from ds_rag.data.columns import Columns
from ds_rag.data.formats import Row, read_rows
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


def read_shots(path: str, columns: Columns, reading: Reading, wanted: ShotsWanted) -> list[Shot]:
    """Examples from a file of rows, whose labels may be ids of the corpus that `reading` knows. Raises UserError as
    `read_rows` and `shots_of_rows` do."""
    rows = read_rows(path, columns, FLAG, need_passages=False, need_answers=True, reading=reading)
    return shots_of_rows(rows, wanted)


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
