"""Answers of many evaluation rows, every rank its part of them.

Rows that begin with the same passage are answered side by side, so that those that share it are scored in one forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ds_rag.config import EvaluationConfig
from ds_rag.data.batch import Ids
from ds_rag.data.prompt import Prompt
from ds_rag.data.token_tables import EvalTokens
from ds_rag.evaluation.decoding import Answerer
from ds_rag.models.generator import Generator
from ds_rag.runtime import collectives, fault_injection, stop_signals


@dataclass(frozen=True)
class AnswerReader:
    """A generator with all that it reads."""

    generator: Generator
    prompt: Prompt
    tokens: EvalTokens
    settings: EvaluationConfig


@dataclass(frozen=True)
class Question:
    """row: its number among the evaluation rows. passages: numbers of those to read, best first; none: closed book.
    log_prior: of each of them. reference: the answer whose likelihood is wanted; None: of none."""

    row: int
    passages: Sequence[int]
    log_prior: Sequence[float] | np.ndarray
    reference: str | None = None


@dataclass(frozen=True)
class Reply:
    """text: the answer. log_likelihood: (K,) log p(reference | passage, query), in nats; None without a reference."""

    text: str
    log_likelihood: np.ndarray | None = None


def answer_rows(reader: AnswerReader, questions: Sequence[Question], decode: str) -> list[Reply]:
    """The replies to these questions, in their order. All ranks together; rank r answers every world-th."""
    world, batch = collectives.world(), reader.settings.per_device_eval_batch_size
    answerer = Answerer(reader.generator, reader.prompt, decode, reader.settings.max_new_tokens, batch)
    order = sorted(range(len(questions)), key=lambda n: tuple(questions[n].passages[:1]))
    mine = order[collectives.rank() :: world]
    own = len(mine)
    if answerer.in_step:  # every rank the same number of rows; the last may be read in vain
        mine += order[: -(-len(order) // world) - own]
    replies: list[Reply] = []
    for start in range(0, -(-len(order) // world), batch):  # as often on every rank
        fault_injection.point("evaluate")
        stop_signals.safe_place()
        if chunk := [questions[n] for n in mine[start : start + batch]]:
            replies += answer_chunk(reader, answerer, chunk)
    shares = collectives.gather_objects(replies[:own])
    found = {n: shares[place % world][place // world] for place, n in enumerate(order)}
    return [found[n] for n in range(len(questions))]


def answer_chunk(reader: AnswerReader, answerer: Answerer, chunk: Sequence[Question]) -> list[Reply]:
    """On one rank. Where one of the questions has a reference, all are scored, those without by an empty one."""
    table, queries = reader.tokens.generator_passages, reader.tokens.generator_queries
    assert table is not None and queries is not None
    asked = [queries[q.row] for q in chunk]
    read = [[table[n] for n in q.passages] or [np.zeros(0, np.int32)] for q in chunk]
    answers = answerer.answer(asked, read, [list(q.log_prior) for q in chunk])
    if all(q.reference is None for q in chunk):
        return [Reply(a.text) for a in answers]
    targets = reference_ids(reader, [q.reference or "-" for q in chunk])
    scores = answerer.score(asked, read, targets)
    return [
        Reply(a.text, s if q.reference is not None else None) for q, a, s in zip(chunk, answers, scores, strict=True)
    ]


def reference_ids(reader: AnswerReader, references: list[str]) -> list[Ids]:
    """As training reads answers: in the prompt, with the end of sequence, cut at `--max_new_tokens`."""
    encoded = reader.prompt.encode("answer", references, reader.settings.max_new_tokens)
    return [np.array(ids, dtype=np.int32) for ids in encoded]
