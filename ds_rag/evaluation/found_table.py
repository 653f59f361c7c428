"""The table of an evaluation, question by question: what was found, what was wanted, and where they stand.

Shape legend: Q questions, K passages found for each, best first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ds_rag.data.dataset import Example, RagData
from ds_rag.data.origin import PassageRecord
from ds_rag.evaluation.containment import answers_in_passages
from ds_rag.evaluation.metrics import pessimistic_ranking
from ds_rag.evaluation.per_question import PerQuestion

LOOKED_AT = 10  # passages of a question that are searched for its answers
SHOWN, SHOWN_CHARACTERS = 5, 800  # passages whose texts the table holds, and how much of each


def found_table(data: RagData, scores_QK: np.ndarray, numbers_QK: np.ndarray) -> PerQuestion:
    """Every evaluation row with the passages that were found for it, as yet without metrics.

    numbers_QK: of passages, below `data.corpus_size`; -1: an approximate index found fewer. Details: `query`,
    `answers`, `gold` (ids of the labelled passages), `gold_rank` (of the first of them, ties against the scorer; None
    where it was not found), `answer_in` (whether each of the first passages contains an answer), `passages` and
    `gold_text` (beginnings of texts), `sources` (document and place of these passages; empty where not known).
    """
    rows, found = data.evaluation, [row[row >= 0].tolist() for row in numbers_QK]
    scores = [s[n >= 0].astype(np.float64).tolist() for s, n in zip(scores_QK, numbers_QK, strict=True)]
    ids = [[data.ids[n] for n in row] for row in found]
    ranks = [
        gold_rank(data.qrels(row), i, s, data.corpus_size) if row.positives else None
        for row, i, s in zip(rows, ids, scores, strict=True)
    ]
    details: dict[str, list[Any]] = {
        "query": [row.query for row in rows],
        "answers": [list(row.answers) for row in rows],
        "gold": [[data.ids[p] for p in row.positives] for row in rows],
        "gold_rank": ranks,
        "answer_in": answers_among(data, numbers_QK),
        "passages": [[shown(data.texts[n]) for n in row[:SHOWN]] for row in found],
        "sources": [[source(data.passage(n)) for n in row[:SHOWN]] for row in found],
        "gold_text": [shown(data.texts[row.positives[0]]) if row.positives else None for row in rows],
    }
    return PerQuestion(question_ids(rows), documents_of(data), {}, ids, scores, details)


def answers_among(data: RagData, numbers_QK: np.ndarray) -> list[list[bool] | None]:
    """For each evaluation row, whether each of the first passages found for it contains an answer. numbers_QK: as in
    `found_table`."""
    first = [row[row >= 0][:LOOKED_AT].tolist() for row in numbers_QK]
    return answers_in_passages(data.texts, first, [row.answers for row in data.evaluation])


def source(passage: PassageRecord) -> str:
    """The document of a passage and its place in it."""
    return ", ".join(filter(None, (passage.document, passage.place)))


def gold_rank(qrels: Mapping[str, int], ids: Sequence[str], scores: Sequence[float], corpus_size: int) -> int | None:
    """The rank, from 1, of the first relevant passage, as the metrics rank: ties against the scorer."""
    ranked = pessimistic_ranking(ids, scores, qrels, corpus_size)
    return next((rank for rank, id_ in enumerate(ranked, start=1) if qrels.get(id_, 0) > 0), None)


def question_ids(rows: Sequence[Example]) -> list[str]:
    """The rows' ids, made distinct: the id of a query may repeat, and rows in memory may have none."""
    times: dict[str, int] = {}  # that an id was met, with those that were made of it
    found: dict[str, None] = {}
    for n, row in enumerate(rows, start=1):
        own = id_ = row.id or f"row-{n}"
        while id_ in found:
            times[own] = times.get(own, 1) + 1
            id_ = f"{own}#{times[own]}"
        found[id_] = None
    return list(found)


def documents_of(data: RagData) -> list[str | None]:
    """The document (cluster) of each evaluation row; None where none is named."""
    return [data.cluster_of(row) for row in data.evaluation]


def shown(text: str) -> str:
    return text[:SHOWN_CHARACTERS]


def enter(table: PerQuestion, rows: Sequence[int], metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Puts metrics of these rows into the table, NaN for the others, and returns their means over the questions that
    have a value. A metric without any is left out."""
    means = {}
    for name, values in metrics.items():
        known = values[np.isfinite(values)]
        if len(known):
            table.metrics[name] = np.full(len(table.ids), np.nan)
            table.metrics[name][list(rows)] = values
            means[name] = float(known.mean())
    return means
