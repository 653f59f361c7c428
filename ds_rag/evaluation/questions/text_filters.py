"""Filters that read a question, its answer and its passage as texts. No model.

`standalone` knows English words alone; in other languages it rejects nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ds_rag.evaluation.containment import contains, framed
from ds_rag.evaluation.metrics import plain_words
from ds_rag.evaluation.questions.examples import EXTRACTIVE
from ds_rag.evaluation.questions.sieve import Question, Reasons

COPIED_WORDS, COPIED_FRACTION = 8, 0.6  # a run of so many words, and of so much of the question, is copied

SOURCE = r"passage|text|article|paragraph|excerpt|abstract|study|studies|paper|document|section|sentence"
SOURCE += r"|figure|table|statement|context|results?|findings|data|report|review|question"
GOES_ON = r"\w+ed\b|says?|means?|finds?|found|shows?|mentions?|suggests?|describes?|states?|about|is|are|was|were|do"
GOES_ON += r"|does|did|concludes?|uses?"
OWN = re.compile(  # "the study", unless it goes on to say which one: "the study of Smith", "the text editor"
    r"\bthe (?:authors?|researchers|investigators)\b(?! (?:of|at|who)\b)"
    r"|\bthe (?:above|following|given|present|current|provided|preceding)\b"
    rf"|\b(?:in|of|by|from|to|does|do|did|is|are|was|were) the (?:{SOURCE})(?=\s*[?,.]|\s+(?:{GOES_ON})\b|$)",
    re.IGNORECASE,
)
ACCORDING = re.compile(
    r"\b[Aa]ccording to (?:(?:the|this|these|that|those|his|her|their|its|our) [a-z]|(?:it|them|him)\b)"
)
DEMONSTRATIVE = re.compile(r"\b(?:this|these|those)\b", re.IGNORECASE)
OPENING = (
    r"(?:(?:what|which|who|whom|whose|when|where|why|how|in what way|to what|for what|with what)\s+)?"
    r"(?:(?:is|are|was|were|do|does|did|can|could|has|have|had|will|would|should|may|might|must|else|many|much|long|"
    r"often|far|kind of|type of)\s+)*"
)
# A pronoun as the first thing that a question names. "It" may stand for nothing: "is it possible", "does it take".
BARE = re.compile(
    rf"^{OPENING}(?:he|she|they|we|his|her|their|its|our|it(?!\s+(?:take|takes|took|possible|impossible|necessary|"
    r"important|safe|true|likely|cost|costs|mean|means|called|known|better|best|recommended|legal|allowed|be))|"
    r"the (?:same|latter|former|other|others))\b",
    re.IGNORECASE,
)
# Words that are no answer by themselves, and at which no answer ends. "Yes" and "no" are answers.
FUNCTIONAL = "a an the this that these those and or but nor so as if than then of in on at by to for from with without "
FUNCTIONAL += (
    "into over under between about after before through is are was were be been being am has have had do does "
)
FUNCTIONAL += (
    "did can could may might will would shall should must not it its he she they we his her their our who whom "
)
FUNCTIONAL += (
    "which what when where how why there here such also only very more most some any each both all other via per"
)
FUNCTION_WORDS = frozenset(FUNCTIONAL.split())
OPENING = "a an the in on at by for from about between before after under over during"
OPENING_WORDS = frozenset(OPENING.split())


@dataclass(frozen=True)
class TextRules:
    """answers: "extractive" or "short". Most words of a question and of an answer. must_ask: a question has a question
    mark."""

    answers: str
    max_question_words: int
    max_answer_words: int
    must_ask: bool = True


def form(question: Question, passage: str, rules: TextRules) -> str | None:
    """The reason to reject a question for its form, or None; so in the functions below."""
    asked, said = len(question.query.split()), len(question.answer.split())
    if not framed(question.query):
        return "no question"
    if not question.answer.strip():
        return "no answer" if question.complete else "unfinished: no answer before --max_tokens"
    if all(map(is_function_word, question.answer.split())):
        return f"no answer: {question.answer!r}"
    if not question.complete:
        return "unfinished: it has no end before --max_tokens"
    if rules.must_ask and not question.query.endswith(("?", "？", "؟")):
        return "no question: without a question mark"
    if asked > rules.max_question_words:
        return f"question too long: {asked} words"
    if said > rules.max_answer_words:
        return f"answer too long: {said} words"
    return None


def is_function_word(word: str) -> bool:
    """English ones alone."""
    return word.lower().strip(",.;:()[]'\"") in FUNCTION_WORDS


def may_begin(word: str) -> bool:
    """May an answer begin with this word? With an article or a word of place, time or cause; with no other function
    word."""
    return not is_function_word(word) or word.lower() in OPENING_WORDS


def span(question: Question, passage: str, rules: TextRules) -> str | None:
    """Case, punctuation and articles do not count."""
    if rules.answers == EXTRACTIVE and not contains(framed(passage), framed(question.answer)):
        return "answer not in the passage"
    return None


def standalone(question: Question, passage: str, rules: TextRules) -> str | None:
    query = question.query.strip()
    for what, rule in (
        ("names its source", ACCORDING),
        ("names its source", OWN),
        ("points at its passage", DEMONSTRATIVE),
        ("a pronoun without its noun", BARE),
    ):
        if found := rule.search(query):
            return f"{what}: {found[0].strip()!r}"
    return None


def copied(question: Question, passage: str, rules: TextRules) -> str | None:
    words = plain_words(question.query)
    run = longest_run(words, plain_words(passage))
    if run >= max(COPIED_WORDS, COPIED_FRACTION * len(words)):
        return f"copied from the passage: {run} words in a row"
    return None


def given_away(question: Question, passage: str, rules: TextRules) -> str | None:
    if contains(framed(question.query), framed(question.answer)):
        return "the answer is in the question"
    return None


# Each with the name of its filter.
TEXT_FILTERS: dict[str, Callable[[Question, str, TextRules], str | None]] = {
    "form": form,
    "span": span,
    "standalone": standalone,
    "copied": copied,
    "given_away": given_away,
}


def by_texts(name: str, texts: Sequence[str], rules: TextRules, questions: Sequence[Question]) -> Reasons:
    """The filter of this name over all questions. texts: of the passages, by number."""
    return [TEXT_FILTERS[name](question, texts[question.passage], rules) for question in questions]


def longest_run(words: list[str], other: list[str]) -> int:
    """The most consecutive words that both lists have, by dynamic programming over the ends of common runs."""
    best, ending = 0, [0] * (len(other) + 1)
    for word in words:
        ending = [0, *(ending[n] + 1 if word == seen else 0 for n, seen in enumerate(other))]
        best = max(best, *ending)
    return best
