"""The filters of `ds-rag qa-gen`, one after another, with the models that some of them ask."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ds_rag.commands.qa_gen.checks import skipped
from ds_rag.commands.qa_gen.opening import Setup
from ds_rag.commands.saved_run import teacher_cache
from ds_rag.evaluation.cached_reader import CachedReader
from ds_rag.evaluation.questions.duplicates import by_vectors, by_words
from ds_rag.evaluation.questions.examples import EXTRACTIVE
from ds_rag.evaluation.questions.judged import (
    INDEX,
    WORDS,
    Found,
    GainRule,
    SearchWanted,
    reader_gain,
    round_trip,
    search_for,
)
from ds_rag.evaluation.questions.sieve import Question, Reasons, Sieve
from ds_rag.evaluation.questions.text_filters import TEXT_FILTERS, TextRules, by_texts
from ds_rag.models.shared_prefix.support import share_prefixes


def sift(setup: Setup, questions: Sequence[Question]) -> Sieve:
    """All filters in their order. All ranks together, with the same result on each."""
    args, skip = setup.args, skipped(setup.args)
    sieve = Sieve(questions, skip)
    asks = all(shot.query.rstrip().endswith("?") for shot in setup.shots)
    rules = TextRules(args.answers, args.max_question_words, args.max_answer_words, asks)
    for name in TEXT_FILTERS:
        if name != "span" or args.answers == EXTRACTIVE:
            sieve.apply(name, partial(by_texts, name, setup.texts, rules))
    alive = sieve.kept
    found, place = search(setup, alive, skip), {id(q): n for n, q in enumerate(alive)}

    def part(some: Sequence[Question]) -> Found | None:
        """What was found for some of those that were searched for."""
        return found.take([place[id(q)] for q in some]) if found else None

    def returned(some: Sequence[Question]) -> Reasons:
        of_some = part(some)
        assert of_some is not None
        return round_trip(some, of_some, chosen_search(setup), args.round_trip_k)

    sieve.apply("round_trip", returned)
    sieve.apply("duplicate", lambda some: duplicates(setup, some, part(some)))
    sieve.apply("gain", lambda some: gained(setup, some, part(some)))
    return sieve


def search(setup: Setup, questions: Sequence[Question], skip: set[str]) -> Found | None:
    """What is found for these questions; None where no filter asks for it."""
    args, stage = setup.args, setup.config.evaluation
    wanted = "round_trip" not in skip or ("gain" not in skip and args.gain_candidates > 0)
    wanted |= "duplicate" not in skip and setup.retriever is not None
    if not questions or not wanted:
        return None
    depth = max(args.round_trip_k, args.gain_candidates + 1)
    size, vectors = stage.per_device_eval_batch_size, stage.vector_cache
    how = SearchWanted(chosen_search(setup), depth, size, stage.index_factory, vectors)
    return search_for([q.query for q in questions], setup.texts, setup.retriever, how, setup.console)


def chosen_search(setup: Setup) -> str:
    """Whose search must find the passage."""
    return setup.args.round_trip_by or (INDEX if setup.retriever is not None else WORDS)


def duplicates(setup: Setup, questions: Sequence[Question], found: Found | None) -> Reasons:
    """By words, then by vectors those that are left."""
    documents = [setup.corpus[q.passage].origin.document for q in questions]
    reasons = by_words(questions, documents, [shot.query for shot in setup.shots])
    if found is not None and found.vectors_QD is not None:
        left = [n for n, reason in enumerate(reasons) if reason is None]
        more = by_vectors([questions[n] for n in left], found.vectors_QD[left], setup.args.duplicate_above)
        for n, reason in zip(left, more, strict=True):
            reasons[n] = reason
    return reasons


def gained(setup: Setup, questions: Sequence[Question], found: Found | None) -> Reasons:
    """By the generator as reader, which reads a passage once for all questions."""
    args = setup.args
    if reason := share_prefixes(setup.generator):
        setup.console.say(
            f"note: this generator cannot share prefixes, so it reads plain sequences: {reason}", "yellow"
        )
    reader = CachedReader(setup.generator, setup.prompt, setup.config.data, teacher_cache(args))
    rule = GainRule(args.gain_margin, args.gain_candidates)
    return reader_gain(questions, setup.texts, found, reader, rule, setup.console)
