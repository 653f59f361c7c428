"""One system out of the tables of several evaluations: folds are joined, seeds are averaged question by question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ds_rag.evaluation.per_question import PerQuestion
from ds_rag.runtime.errors import UserError, choose

DOCUMENT, NONE = "document", "none"  # of --cluster_column: the table's own column; every question by itself
COMPARED = {"data_hash": "rows", "corpus_hash": "corpus"}  # what figures must have in common, and its name in messages
OWN = {"model_hashes", "seed", "data_hash", "corpus_hash"}  # what systems may differ in, and what is told otherwise


@dataclass
class System:
    """A retriever and a generator, trained one or more times, and what they found.

    Attributes:
        ids: the questions' ids, Q of them.
        clusters: the document of each question, None for one that stands alone.
        figures: name -> (S, Q) float64, S seeds; NaN where a question has no value.
        signatures: of the evaluation that a question was part of, one of each seed: Q lists.
    """

    name: str
    ids: list[str]
    clusters: list[str | None]
    figures: dict[str, np.ndarray]
    signatures: list[list[dict[str, Any]]]

    @property
    def seeds(self) -> int:
        return len(self.signatures[0])

    def settings(self) -> dict[str, set[str]]:
        """What its evaluations were made with, beside models and data: every value that occurs."""
        found: dict[str, set[str]] = {}
        distinct = {id(s): s for question in self.signatures for s in question}
        for signature in distinct.values():
            for key in signature.keys() - OWN:
                found.setdefault(key, set()).add(str(signature[key]))
        return found


def join(name: str, tables: Sequence[PerQuestion], cluster_column: str = DOCUMENT) -> System:
    """A system out of its tables. Those with the same questions are its seeds, those with other questions its folds;
    each fold has as many seeds as the others.

    Raises: UserError for questions that overlap in part, for folds with different numbers of seeds, for an unknown
    column, and for a question that has two documents.
    """
    folds: dict[frozenset[str], list[PerQuestion]] = {}
    for table in tables:
        folds.setdefault(frozenset(table.ids), []).append(table)
    _check_folds(name, folds)
    ids: list[str] = []
    clusters: list[str | None] = []
    signatures: list[list[dict[str, Any]]] = []
    parts: dict[str, list[np.ndarray]] = {}
    shared = set.intersection(*(set(table.metrics) for table in tables))
    for seeds in folds.values():
        seeds = in_order_of_seed(seeds)
        places = [{id_: n for n, id_ in enumerate(table.ids)} for table in seeds]
        ids += seeds[0].ids
        clusters += clusters_of(seeds[0], cluster_column)
        signatures += [[table.signature for table in seeds]] * len(seeds[0].ids)
        for figure in (figure for figure in tables[0].metrics if figure in shared):
            rows = [
                table.metrics[figure][[place[id_] for id_ in seeds[0].ids]]
                for table, place in zip(seeds, places, strict=True)
            ]
            parts.setdefault(figure, []).append(np.stack(rows))
    return System(name, ids, clusters, {figure: np.concatenate(p, axis=1) for figure, p in parts.items()}, signatures)


def _check_folds(name: str, folds: dict[frozenset[str], list[PerQuestion]]) -> None:
    if any(len(table.ids) == 0 for tables in folds.values() for table in tables):
        raise UserError(f"{name}: a table without questions", expected="the results of an evaluation of some rows")
    questions = [id_ for ids in folds for id_ in ids]
    if len(set(questions)) != len(questions):
        raise UserError(
            f"{name}: its results overlap in part",
            found=f"{len(questions) - len(set(questions))} questions are in tables with different questions",
            expected="the same questions (seeds) or none in common (folds)",
            fix="evaluate all seeds on the same rows",
        )
    numbers = {len(tables) for tables in folds.values()}
    if len(numbers) > 1:
        raise UserError(
            f"{name}: its folds have different numbers of seeds",
            found=", ".join(str(len(tables)) for tables in folds.values()),
            expected="the same number for each fold",
            fix="leave out the seeds that not all folds have",
        )


def in_order_of_seed(tables: list[PerQuestion]) -> list[PerQuestion]:
    """By the seed that the signatures name; as given where not each names one."""
    seeds = [table.signature.get("seed") for table in tables]
    if not all(isinstance(seed, int) for seed in seeds):
        return tables
    return sorted(tables, key=lambda table: int(table.signature["seed"]))


def clusters_of(table: PerQuestion, column: str) -> list[str | None]:
    """What goes together by this column: a name for each question."""
    if column == NONE:
        return [None] * len(table.ids)
    if column == DOCUMENT:
        return table.documents
    values = choose(table.details, column, "column of the questions' table")
    return [None if value is None else str(value) for value in values]


def check_same_data(systems: Sequence[System], different_data: bool) -> list[str]:
    """Warnings about questions whose rows or corpus were not the same in all evaluations. Raises UserError instead,
    unless `different_data`; in any case where a question lies in two documents."""
    notes = []
    for key, what in COMPARED.items():
        seen: dict[str, set[str]] = {}
        for system in systems:
            for id_, signatures in zip(system.ids, system.signatures, strict=True):
                seen.setdefault(id_, set()).update(s[key] for s in signatures if s.get(key) is not None)
        count = sum(len(hashes) > 1 for hashes in seen.values())
        if count and not different_data:
            raise UserError(
                f"the evaluations are not of the same {what}",
                found=f"{count} questions with signatures of different {what} hashes",
                expected="one evaluation's rows and corpus for all systems",
                fix="evaluate again on the same data, or --different_data compares in spite of it",
            )
        if count:
            notes.append(
                f"warning: {what} not the same for {count} questions: figures may differ for that reason alone"
            )
    documents: dict[str, str] = {}
    for system in systems:
        for id_, document in zip(system.ids, system.clusters, strict=True):
            if document is not None and documents.setdefault(id_, document) != document:
                raise UserError(
                    f"question {id_} lies in two documents",
                    found=f"{documents[id_]} and, in {system.name}, {document}",
                    expected="one",
                    fix="--cluster_column names another column, or none",
                )
    return notes


def different_settings(systems: Sequence[System]) -> list[str]:
    """What else the evaluations did not have in common."""
    settings = [system.settings() for system in systems]
    keys = sorted({key for found in settings for key in found})
    notes = []
    for key in keys:
        values = [" and ".join(sorted(found.get(key, {"not known"}))) for found in settings]
        if len(set(values)) > 1:
            pairs = (f"{system.name} {value[:40]}" for system, value in zip(systems, values, strict=True))
            notes.append(f"note: not the same {key}: {', '.join(pairs)}")
    return notes
