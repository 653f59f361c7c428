"""The prompt that asks for a question about a passage, and what was written as question and answer.

A base model continues examples; a chat model gets the same text as one message, in its own template. Both answer in two
lines, "Question: ..." and "Answer: ...".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ds_rag.data.prompt import Prompt
from ds_rag.evaluation.questions.examples import EXTRACTIVE, SHORT, Shot

STANDS_ALONE = "The question names what it is about and is understood without the passage."
TASK = {
    EXTRACTIVE: "Each passage is followed by some words that are copied from it, and by a question to which they are "
    f"the answer. {STANDS_ALONE}",
    SHORT: f"Each passage is followed by a question that it answers, and by the answer in a few words. {STANDS_ALONE}",
}
# The labels of the two lines, in the order in which they are written. A span is chosen before its question: a model
# that begins with the question often answers it from memory.
ORDER = {EXTRACTIVE: ("Answer:", "Question:"), SHORT: ("Question:", "Answer:")}
CHAT_HINT = {
    EXTRACTIVE: "Copy some words from this last passage, and write a question to which they are the answer, in two "
    "lines as above.",
    SHORT: "Write a question that this last passage answers, and its answer in a few words, in two lines as above.",
}
LABELS = re.compile(r"^[*# ]*(Question|Answer)\W*:[* ]*", re.MULTILINE)  # as chat models adorn them
MARKS = "?？؟"  # with which a question ends


@dataclass(frozen=True)
class Style:
    """answers: EXTRACTIVE or SHORT. chat: whether the prompt stands in the tokenizer's chat template."""

    answers: str
    chat: bool

    @property
    def lead(self) -> str:
        """The label with which the model's answer begins."""
        return ORDER[self.answers][0]

    @property
    def hint(self) -> str:
        """What stands in the prompt after the passage, in the place of a query."""
        return CHAT_HINT[self.answers] if self.chat else self.lead


@dataclass(frozen=True)
class Written:
    """What was read from a generation; empty texts where there is none. complete: the answer has an end."""

    query: str
    answer: str
    complete: bool


def writing_prompt(tokenizer: Any, shots: Sequence[Shot], style: Style, max_length: int) -> Prompt:
    """The prompt around a passage; its `query` is `style.hint`. Its first literal, which all passages share, holds the
    task and the examples. Raises UserError for a chat without a chat template."""
    return Prompt(tokenizer, template_of(shots, style), style.chat, max_length)


def template_of(shots: Sequence[Shot], style: Style) -> str:
    """A template for `Prompt`, with {passage} and {query}."""
    told = [TASK[style.answers], *(f"Passage: {shot.passage}\n{lines(shot, style)}" for shot in shots)]
    fixed = "\n\n".join(told).replace("{", "{{").replace("}", "}}")
    return fixed + "\n\nPassage: {passage}\n" + "\n" * style.chat + "{query}"


def lines(shot: Shot, style: Style) -> str:
    said = {"Question:": shot.query, "Answer:": shot.answer}
    return "\n".join(f"{label} {said[label]}" for label in ORDER[style.answers])


def is_complete(text: str, style: Style) -> bool:
    """May the generation stop here? Once its second line has an end, or a question its mark, or once another passage
    begins. text: what was generated after `style.lead`."""
    first, _, second = (style.lead + LABELS.sub(r"\1: ", text)).partition("\n" + ORDER[style.answers][1])
    if "\nPassage:" in first:
        return True
    if second.startswith(" ") and not second.strip():
        return False
    asked = ORDER[style.answers][1] == "Question:" and any(mark in second for mark in MARKS)
    return asked or "\n" in second.lstrip()


def parse(text: str, ended: bool, style: Style) -> Written:
    """Question and answer of a generation. text: as for `is_complete`. ended: the model itself ended it, by its
    end-of-sequence token."""
    labels = ORDER[style.answers]
    begun = style.lead + " " + LABELS.sub(r"\1: ", text.partition("\nPassage:")[0])
    begin = begun.partition(labels[1])[0].rfind(labels[0])  # a chat model may repeat the label
    first, _, second = begun[begin + len(labels[0]) :].partition("\n" + labels[1])
    parts = {labels[0]: first.strip().partition("\n")[0], labels[1]: second.lstrip().partition("\n")[0]}
    query, answer = tidy(parts["Question:"]), tidy(parts["Answer:"])
    mark = max(query.rfind(mark) for mark in MARKS)
    if labels[1] == "Question:":  # whatever a model says after its question
        mark = min((place for mark in MARKS if (place := query.find(mark)) >= 0), default=-1)
    complete = bool(second.strip()) and (ended or is_complete(text, style))
    return Written(query[: mark + 1] if mark >= 0 else query, answer, complete)


def tidy(text: str) -> str:
    """Without outer blanks, quotes around all of it, and a full stop that ends no sentence (one word, say)."""
    text = text.strip().strip('"“”').strip()
    return text[:-1] if text.endswith(".") and text.count(".") == 1 else text
