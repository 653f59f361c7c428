"""The filters that ask models: ranks and gains against plain loops, and what is rejected by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small import small_generator, small_retriever

from ds_rag.config import DataConfig
from ds_rag.data.almanac import make_world
from ds_rag.data.prompt import Prompt
from ds_rag.data.records import Passage, Row
from ds_rag.evaluation.cached_reader import CachedReader
from ds_rag.evaluation.questions.examples import EXTRACTIVE, MOST_WORDS, SHORT, ShotsWanted, excerpt, shots_of_rows
from ds_rag.evaluation.questions.judged import (
    EITHER,
    INDEX,
    WORDS,
    Found,
    GainRule,
    SearchWanted,
    judge,
    reader_gain,
    round_trip,
    search_for,
)
from ds_rag.evaluation.questions.rows import hold_out, row_of
from ds_rag.evaluation.questions.sieve import Question
from ds_rag.index.lexical import LexicalIndex
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

WORLD = make_world(0)
TEXTS, QUIET = [p.text for p in WORLD.corpus[:8]], Console(speaks=False)


def test_the_round_trip_by_hand() -> None:
    found = Found({INDEX: np.array([[4, 2, 0], [1, 0, -1]]), WORDS: np.array([[3, 4, 2], [5, 6, 1]])})
    for by, ranks, passes in (
        (INDEX, [2, 1], [True, True]),
        (WORDS, [3, 3], [False, False]),
        (EITHER, [2, 1], [True, True]),
    ):
        questions = [Question(2, 0, "a?", "x"), Question(1, 0, "b?", "y")]
        reasons = round_trip(questions, found, by, k=2)
        assert [q.rank for q in questions] == ranks and [r is None for r in reasons] == passes
    absent = [Question(9, 0, "a?", "x"), Question(1, 0, "b?", "y")]
    assert round_trip(absent, found, EITHER, 3) == ["passage not among the first 3", None] and absent[0].rank is None
    assert found.others(0, 2, 2) == [4, 0] and found.others(1, 1, 2) == [0], "the retriever's, without the passage"
    assert found.take([1]).rank(0, 1, INDEX) == 1


def test_a_search_finds_what_all_products_find() -> None:
    retriever = small_retriever(seed=3)
    queries = [row.query for row in WORLD.evaluation[:3]]
    found = search_for(queries, TEXTS, retriever, SearchWanted(EITHER, 4, 8, "Flat"), QUIET)

    def vectors(texts: list[str], side: str) -> np.ndarray:
        from ds_rag.data.batch import pad_right

        ids = [np.array(x, dtype=np.int32) for x in retriever.tokenize(texts, side)]
        with torch.no_grad():
            return retriever.eval().embed(pad_right(ids, 0), side).numpy()

    scores_QN = vectors(queries, "query") @ vectors(TEXTS, "passage").T
    assert found.numbers[INDEX].tolist() == np.argsort(-scores_QN, axis=1, kind="stable")[:, :4].tolist()
    index = LexicalIndex(TEXTS)
    for query, numbers in zip(queries, found.numbers[WORDS], strict=True):
        best = np.argsort(-index.scores(query), kind="stable")[:4]
        assert numbers.tolist() == [n if index.scores(query)[n] > 0 else -1 for n in best.tolist()]
    assert found.numbers[WORDS].min() == -1 < found.numbers[WORDS].max(), "a passage without a word is not found"
    words_alone = search_for(queries, TEXTS, None, SearchWanted(WORDS, 99, 8, "Flat"), QUIET)
    assert words_alone.vectors_QD is None and words_alone.numbers.keys() == {WORDS}
    assert words_alone.numbers[WORDS].shape == (3, len(TEXTS))


@pytest.mark.parametrize("shared", [False, True])
def test_gains_by_one_plain_forward_a_cell(shared: bool, tmp_path: Path) -> None:
    generator = small_generator(seed=5)
    prompt = Prompt(generator.tokenizer, max_length=generator.max_length)
    assert not shared or share_prefixes(generator) is None
    questions = [
        Question(1, 0, "who leads ?", "ann"),
        Question(1, 1, "where ?", "pool nine"),
        Question(3, 0, "what ?", "x"),
    ]
    found = Found({INDEX: np.array([[0, 1, 2], [1, 2, 5], [3, 4, 6]])})
    reader = CachedReader(generator, prompt, DataConfig(), str(tmp_path))
    lowest = GainRule(-1e9, candidates=2)
    reasons = reader_gain(questions, TEXTS, found, reader, lowest, QUIET)

    def mean(passage: str, question: Question) -> float:
        """log p of a token of the answer, its end included."""
        parts = [prompt.encode(f, [t], 200)[0] for f, t in (("passage", passage), ("query", question.query))]
        (answer,) = prompt.encode("answer", [question.answer], 64)
        before = prompt.context(*(np.array(x, dtype=np.int32) for x in parts), len(answer)).tolist()
        logits = generator.lm(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1]
        return float(torch.log_softmax(logits, -1)[range(len(answer)), answer].mean())

    for question, others, reason in zip(questions, [[0, 2], [2, 5], [4, 6]], reasons, strict=True):
        nothing = mean("", question)
        gain, rest = (
            mean(TEXTS[question.passage], question) - nothing,
            [mean(TEXTS[n], question) - nothing for n in others],
        )
        assert question.gain == pytest.approx(gain, abs=2e-4)
        assert (reason is None) == (gain > max(rest)), "likelier than by any other"
    again = reader_gain(questions, TEXTS, None, reader, GainRule(1e9, 0), QUIET)
    assert all(r and r.startswith("the passage makes the answer no likelier") for r in again)
    assert any(reasons) and not all(reasons), "both cases are there"


@pytest.mark.parametrize(
    ("gains", "reason"),
    [
        ([0.5, 0.4, -1.0], None),
        ([0.5], None),
        ([0.1], None),
        ([0.09, -1.0], "the passage makes the answer no likelier: 0.09 nats a token"),
        ([float("nan"), 0.0], "the passage makes the answer no likelier: nan nats a token"),
        ([0.5, 0.2, 0.6], "another passage makes the answer likelier: 0.60, not 0.50 nats a token"),
        ([0.5, 0.5], "another passage makes the answer likelier: 0.50, not 0.50 nats a token"),
    ],
)
def test_what_a_gain_must_be(gains: list[float], reason: str | None) -> None:
    assert judge(Question(0, 0, "q?", "a"), np.array(gains), margin=0.1) == reason


def row(n: int, answers: tuple[str, ...], positives: tuple[str, ...] = ()) -> Row:
    return Row(f"r{n}", f"what is {n}?", answers, positives, (), (), f"rows.jsonl:{n}")


def test_examples_of_the_users_rows() -> None:
    rows = [
        row(1, ("kelp",), ("Kelp grows in pool nine.",)),
        row(2, ("wheat", "in pool nine"), ("kelp grows in pool nine",)),
        row(3, ("wheat",), ("kelp grows in pool nine",)),
        row(4, ("ann",), ("ann leads zor",)),
        row(5, ("bob",)),
    ]
    shots = shots_of_rows(rows, ShotsWanted(EXTRACTIVE, 9, 0))
    assert {(s.query, s.answer) for s in shots} == {
        ("what is 1?", "kelp"),
        ("what is 2?", "in pool nine"),
        ("what is 4?", "ann"),
    }
    assert len(shots_of_rows(rows, ShotsWanted(SHORT, 9, 0))) == 4, "an answer in other words serves too"
    two = shots_of_rows(rows, ShotsWanted(EXTRACTIVE, 2, 0))
    assert len(two) == 2 and two == shots_of_rows(rows, ShotsWanted(EXTRACTIVE, 2, 0))
    with pytest.raises(UserError, match="--examples: no row can be an example") as caught:
        shots_of_rows(rows[2:3], ShotsWanted(EXTRACTIVE, 2, 0))
    assert "word for word" in str(caught.value)


def test_a_long_example_is_cut_around_its_answer() -> None:
    words = [f"w{n}" for n in range(300)]
    for answer, first in (("w0 w1", 0), ("W150  w151", 150 - MOST_WORDS // 2), ("w299", 300 - MOST_WORDS), (None, 0)):
        cut = excerpt(" \n".join(words), answer).split()
        assert cut == words[first : first + MOST_WORDS]
    assert excerpt("a\nb", "b") == "a b"


def corpus_of(documents: int, each: int) -> tuple[list[Passage], list[Question]]:
    from ds_rag.data.origin import Origin

    corpus = [
        Passage(f"d{d}-{n}", f"text {d} {n}", origin=Origin(f"d{d}", None, f"page {n}"))
        for d in range(documents)
        for n in range(each)
    ]
    return corpus, [Question(n, 0, f"q{n}?", "x", rank=1, gain=0.25) for n in range(len(corpus))]


def test_whole_documents_are_held_out_and_stay_so(tmp_path: Path) -> None:
    import json

    file = tmp_path / "dev.jsonl.split.json"
    corpus, questions = corpus_of(40, 5)
    split, out = hold_out(questions, corpus, 0.1, file)
    held = {corpus[q.passage].document for q, o in zip(questions, out, strict=True) if o}
    assert sum(out) == 20 and len(held) == 4
    file.write_text(json.dumps(split.to_json()))
    more_corpus, more = corpus_of(60, 5)
    _, out = hold_out(more, more_corpus, 0.1, file)
    assert {more_corpus[q.passage].document for q, o in zip(more, out, strict=True) if o} == held, (
        "new ones are trained on"
    )
    _, out = hold_out(more, more_corpus, 0.2, file)
    assert sum(out) == 60, "another fraction is another split"
    with pytest.raises(UserError, match="too few rows to measure on"):
        hold_out(questions[:50], corpus, 0.1, tmp_path / "none.json")
    assert row_of(questions[6], corpus) == {
        "id": "d1-1-q0",
        "query": "q6?",
        "answer": "x",
        "positive_ids": ["d1-1"],
        "document": "d1",
        "place": "page 1",
        "rank": 1,
        "gain": 0.25,
    }
