"""Filters of generated questions that need no model: a text in, a reason out."""

from __future__ import annotations

import numpy as np
import pytest

from ds_rag.evaluation.questions.duplicates import SAME_WORDS, by_vectors, by_words, shingles
from ds_rag.evaluation.questions.sieve import FILTERS, WHAT_TO_DO, Question, Sieve
from ds_rag.evaluation.questions.text_filters import TEXT_FILTERS, TextRules, by_texts, longest_run

PASSAGE = (
    "Measles spreads through the air when an infected person coughs. About nine of ten people without immunity fall "
    "ill after contact. A vaccine has been available since 1963 and is given in two doses to children in many lands."
)
RULES = TextRules("extractive", max_question_words=12, max_answer_words=5)


def found(query: str, answer: str = "two doses", complete: bool = True) -> tuple[str, str] | None:
    """(filter, reason) of the first filter that rejects it."""
    question = Question(0, 0, query, answer, complete)
    for name in TEXT_FILTERS:
        (reason,) = by_texts(name, [PASSAGE], RULES, [question])
        if reason is not None:
            return name, reason
    return None


GOOD = [
    "How many doses of measles vaccine do children get?",
    "Is it possible to catch measles twice?",
    "How long does it take to develop immunity to measles?",
    "According to WHO, how is measles vaccine given?",
    "What does the text editor of Norda save?",
    "What did Koch find when he looked at anthrax?",
    "In which study of measles were children vaccinated twice?",
    "Was a measles vaccine given in the report of 1963?",
]
REJECTED = [
    ("", "two doses", "form", "no question"),
    ("?", "two doses", "form", "no question"),
    ("Children get a vaccine", "two doses", "form", "no question: without a question mark"),
    ("How many doses do children get?", "", "form", "no answer"),
    ("How many doses do children get?", "with the", "form", "no answer: 'with the'"),
    ("How many " + "doses " * 11 + "?", "two doses", "form", "question too long: 14 words"),
    ("When are children ill?", "when an infected person coughs", "", ""),
    ("When are children ill?", "after contact A vaccine has been", "form", "answer too long: 6 words"),
    ("How many doses do children get?", "three doses", "span", "answer not in the passage"),
    ("How many doses do children get?", "...", "span", "answer not in the passage"),
    ("How many doses do children get?", "wo dos", "span", "answer not in the passage"),
    ("How many doses does this passage name?", "two doses", "standalone", "points at its passage: 'this'"),
    ("What do these children get?", "two doses", "standalone", "points at its passage: 'these'"),
    ("According to the text, how many doses are given?", "two doses", "standalone", "names its source: "),
    ("What is given in the above example?", "two doses", "standalone", "names its source: 'the above'"),
    ("What did the authors give to children?", "two doses", "standalone", ""),
    ("What is the main result of the study?", "two doses", "standalone", "names its source: 'of the study'"),
    ("How often is it given?", "two doses", "standalone", "a pronoun without its noun: 'How often is it'"),
    ("Why do they cough?", "two doses", "standalone", "a pronoun without its noun: 'Why do they'"),
    ("What are their children given?", "two doses", "standalone", "a pronoun without its noun: 'What are their'"),
    (
        "Has a vaccine has been available since 1963 and is given?",
        "two doses",
        "copied",
        "copied from the passage: 10 words in a row",
    ),
    ("Are two doses of measles vaccine given?", "two doses", "given_away", "the answer is in the question"),
]


@pytest.mark.parametrize("query", GOOD)
def test_a_good_question_passes(query: str) -> None:
    assert found(query) is None


@pytest.mark.parametrize(("query", "answer", "name", "reason"), REJECTED)
def test_a_bad_one_is_rejected_with_its_reason(query: str, answer: str, name: str, reason: str) -> None:
    got = found(query, answer)
    if not name:
        assert got is None
    else:
        assert got is not None and got[0] == name and (got[1] == reason or got[1].startswith(reason))


def test_what_was_cut_by_the_limit_of_tokens_is_unfinished() -> None:
    assert found("How many doses?", "two", complete=False) == ("form", "unfinished: it has no end before --max_tokens")
    assert found("How many doses?", "", complete=False) == ("form", "unfinished: no answer before --max_tokens")


def test_short_answers_need_not_be_in_the_passage_nor_must_all_examples_ask() -> None:
    question = Question(0, 0, "doses for children", "three of them")
    for rules, left in (
        (TextRules("short", 12, 5, must_ask=False), []),
        (TextRules("short", 12, 5), ["form"]),
        (TextRules("extractive", 12, 5, must_ask=False), ["span"]),
    ):
        reasons = {name: by_texts(name, [PASSAGE], rules, [question])[0] for name in TEXT_FILTERS}
        assert [name for name, reason in reasons.items() if reason] == left


def test_the_longest_common_run_by_a_loop() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = ([str(n) for n in rng.integers(0, 3, size)] for size in rng.integers(0, 12, 2))
        runs = [
            size
            for size in range(1, 13)
            for i in range(len(one) - size + 1)
            for j in range(len(other) - size + 1)
            if one[i : i + size] == other[j : j + size]
        ]
        assert longest_run(one, other) == max(runs, default=0)


def ask(*queries: str) -> list[Question]:
    return [Question(n, 0, query, "x") for n, query in enumerate(queries)]


def test_near_duplicates_by_words_count_within_a_document_and_of_examples() -> None:
    questions = ask(
        "How many doses of the vaccine are given?",
        "How many doses of the vaccine are given now?",
        "How many doses of the vaccine are given now?",
        "Who discovered the vaccine?",
        "Why does the lamp of the pump blink?",
    )
    reasons = by_words(questions, ["a", "a", "b", "a", "a"], ["Why does the lamp of the pump blink?"])
    assert [bool(reason) for reason in reasons] == [False, True, False, False, True]
    assert reasons[1] == "words of another question: How many doses of the vaccine are given?"
    alone = by_words(questions[:2], [None, None])
    assert alone == [None, None], "without a document a question is compared within its passage"
    assert shingles("a b c") == {("<", "a", "b"), ("a", "b", "c"), ("b", "c", ">")} and 0 < SAME_WORDS < 1


def test_near_duplicates_by_vectors_against_a_loop() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(40, 3)) * rng.uniform(0.1, 9, size=(40, 1))
    questions, kept = ask(*(f"q{n}" for n in range(40))), list[int]()
    for n, vector in enumerate(vectors):
        near = [m for m in kept if vector @ vectors[m] / np.linalg.norm(vector) / np.linalg.norm(vectors[m]) > 0.9]
        if not near:
            kept.append(n)
    reasons = by_vectors(questions, vectors, 0.9)
    assert [n for n, reason in enumerate(reasons) if reason is None] == kept and 5 < len(kept) < 35
    assert all("meaning of another question: q" in str(r) for r in reasons if r)


def test_a_sieve_counts_and_names_what_took_most() -> None:
    questions = [*ask("a?", "b?", "c?"), Question(3, 0, "", "x")]
    sieve = Sieve(questions, skip=["span"])
    sieve.apply("form", lambda some: [None, "no answer", None, "no question: none"])
    sieve.apply("span", lambda some: ["never looked at"] * len(some))
    seen: list[Question] = []
    sieve.apply("standalone", lambda some: seen.extend(some) or ["names its source: 'x'"] * len(some))
    sieve.apply("copied", lambda some: pytest.fail("nothing is left to look at"))
    assert [q.query for q in seen] == ["a?", "c?"], "a rejected question is not looked at again"
    assert [(c["filter"], c["read"], c["rejected"]) for c in sieve.summary()] == [("form", 4, 2), ("standalone", 2, 2)]
    assert sieve.summary()[0]["reasons"] == {"no answer": 1, "no question": 1}
    assert sieve.summary()[1]["example"] == {"query": "a?", "answer": "x", "reason": "names its source: 'x'"}
    assert not sieve.kept and len(sieve.rejected) == 4
    error = sieve.nothing_left()
    assert error.code == 1 and "form 2, standalone 2" in str(error) and WHAT_TO_DO["form"] in str(error)
    assert WHAT_TO_DO.keys() == FILTERS.keys()


def test_without_the_filter_of_forms_a_row_still_needs_both_texts() -> None:
    sieve = Sieve([*ask("a"), Question(1, 0, "b", ""), Question(2, 0, "", "c")], skip=["form"])
    sieve.apply("form", lambda some: ["never looked at"] * len(some))
    assert [q.query for q in sieve.kept] == ["a"] and "form" in sieve.skip
