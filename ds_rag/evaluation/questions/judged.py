"""Filters that ask models: does a search find the passage, and does the passage make the answer likelier?

Round trip: a question that does not lead a retriever back to its passage is too vague, or about something else
(Alberti et al. 2019, ACL, arXiv:1906.05416, for answers; Dai et al. 2023, ICLR, arXiv:2209.11755, for retrieval).

Gain: u = (log p(y|x,z) - log p(y|x)) / |y|, what a token of the answer y gains by the passage z over the prompt of an
empty passage, in nats. The source passage should gain, and more than any other that is found for the question.

Shape legend: Q questions, K passages found for one, N passages of the corpus, D dimensions of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ds_rag.data.token_tables import tokenize_field, tokenize_side
from ds_rag.evaluation.cached_reader import CachedReader
from ds_rag.evaluation.questions.sieve import Question, Reasons
from ds_rag.evaluation.retrieval import search_words
from ds_rag.index.corpus_index import CorpusIndex, build_part
from ds_rag.index.encode import encode
from ds_rag.index.vector_folder import open_vector_store, say_account
from ds_rag.models.retriever import Retriever
from ds_rag.models.score_folder import open_scores
from ds_rag.runtime.console import Console
from ds_rag.step.cached_scoring import FrozenReader, scores_of
from ds_rag.step.pair_scores import Pair, PairTexts

INDEX, WORDS, EITHER = "index", "bm25", "either"  # whose search must find the passage


@dataclass
class Found:
    """What the searches found. numbers: (Q, K) by INDEX or WORDS, best first, -1 where there is none. vectors_QD: of
    the questions; None without a retriever."""

    numbers: dict[str, np.ndarray]
    vectors_QD: np.ndarray | None = None

    def rank(self, row: int, passage: int, by: str) -> int | None:
        """The place of a passage, from 1, in a question's search; by EITHER the better one of both."""
        places = [
            int(np.flatnonzero(numbers_QK[row] == passage)[0]) + 1
            for name, numbers_QK in self.numbers.items()
            if by in (name, EITHER) and passage in numbers_QK[row]
        ]
        return min(places, default=None)

    def others(self, row: int, passage: int, count: int) -> list[int]:
        """The first `count` passages beside this one: the retriever's, without a retriever those of BM25."""
        numbers_QK = self.numbers.get(INDEX, self.numbers.get(WORDS))
        assert numbers_QK is not None
        return [n for n in numbers_QK[row].tolist() if n >= 0 and n != passage][:count]

    def take(self, rows: Sequence[int]) -> Found:
        kept = list(rows)
        vectors_QD = self.vectors_QD[kept] if self.vectors_QD is not None else None
        return Found({name: numbers_QK[kept] for name, numbers_QK in self.numbers.items()}, vectors_QD)


@dataclass(frozen=True)
class SearchWanted:
    """by: INDEX, WORDS or EITHER. depth: passages for each question. batch: texts that are embedded at once.
    index_factory: the type of index. vectors: the folder of `--vector_cache`."""

    by: str
    depth: int
    batch: int
    index_factory: str
    vectors: str | None = None


def search_for(
    queries: Sequence[str], texts: Sequence[str], retriever: Retriever | None, wanted: SearchWanted, console: Console
) -> Found:
    """The passages found for each question. texts: of the whole corpus. All ranks together, each has all."""
    depth = min(wanted.depth, len(texts))
    found = Found({})
    if retriever is not None:
        settings = (wanted.batch, console)
        passages = tokenize_side(retriever, "passage", texts, console, "passages")
        store = open_vector_store(wanted.vectors, retriever, console.say)
        corpus_ND = encode(retriever, passages, "passage", *settings, store=store)
        say_account(store, console)
        asked = tokenize_side(retriever, "query", queries, console, "questions")
        found.vectors_QD = encode(retriever, asked, "query", *settings)
        part = build_part(corpus_ND, wanted.index_factory)
        index = CorpusIndex([part] if part else [], len(texts))
        found.numbers[INDEX] = index.search_here(found.vectors_QD, depth)[1]
    if retriever is None or wanted.by in (WORDS, EITHER):
        scores, numbers = search_words(texts, queries, depth, console)
        found.numbers[WORDS] = np.where(scores > 0, numbers, -1)  # one without any word of the question is not found
    return found


def round_trip(questions: Sequence[Question], found: Found, by: str, k: int) -> Reasons:
    """Sets the rank of each question, and rejects those whose passage is not among the first k. found: row by row of
    these questions."""
    reasons: Reasons = []
    for row, question in enumerate(questions):
        question.rank = found.rank(row, question.passage, by)
        ok = question.rank is not None and question.rank <= k
        reasons.append(None if ok else f"passage not among the first {k}")
    return reasons


@dataclass(frozen=True)
class GainRule:
    """margin: the least gain of the source passage, nats a token. candidates: other passages that must gain less."""

    margin: float
    candidates: int


def reader_gain(
    questions: Sequence[Question],
    texts: Sequence[str],
    found: Found | None,
    reader: CachedReader,
    rule: GainRule,
    console: Console,
) -> Reasons:
    """Sets the gain of each question, and rejects those whose passage gains less than the margin, or no more than
    another one that was found. found: row by row of these questions; None: no others are read. All ranks together."""
    others = [found.others(row, q.passage, rule.candidates) if found else [] for row, q in enumerate(questions)]
    read = [(row, [question.passage, *others[row]]) for row, question in enumerate(questions)]
    place = {n: at for at, n in enumerate(sorted({n for _, numbers in read for n in numbers}))}
    pairs: list[Pair] = [(row, place[n]) for row, numbers in read for n in numbers]
    pairs += [(row, len(place)) for row in range(len(questions))]  # the last passage is the empty one

    def ids(field: str, of: Sequence[str]) -> list[np.ndarray]:
        table = tokenize_field(reader.prompt, field, of, reader.lengths, console, f"{len(of)} {field} texts")
        return [table[n] for n in range(len(table))]

    passages = [*ids("passage", [texts[n] for n in place]), np.zeros(0, np.int32)]
    pair_texts = PairTexts(
        ids("query", [q.query for q in questions]), ids("answer", [q.answer for q in questions]), passages
    )
    store = None
    if reader.cache:
        store = open_scores(reader.cache, reader.generator, reader.prompt, reader.lengths, console.say)
    scored = scores_of(FrozenReader(reader.generator, reader.prompt, pair_texts), pairs, store, console)
    means_P = scored.log_likelihoods("mean")
    nothing_Q = means_P[len(means_P) - len(questions) :]
    ends = np.cumsum([len(numbers) for _, numbers in read])
    reasons: Reasons = []
    for (row, numbers), end in zip(read, ends, strict=True):
        gains = means_P[end - len(numbers) : end] - nothing_Q[row]
        reasons.append(judge(questions[row], gains, rule.margin))
    return reasons


def judge(question: Question, gains: np.ndarray, margin: float) -> str | None:
    """gains: of the source passage, then of others, nats a token. Equal to another one is not more than it."""
    question.gain = float(gains[0])
    if not question.gain >= margin:  # NaN passes nothing
        return f"the passage makes the answer no likelier: {question.gain:.2f} nats a token"
    if len(gains) > 1 and not gains[0] > gains[1:].max():
        return f"another passage makes the answer likelier: {gains[1:].max():.2f}, not {question.gain:.2f} nats a token"
    return None
