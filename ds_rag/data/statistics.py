"""Statistics of rows and a corpus: labels, repetitions, lengths, overlap of two sets of rows. It counts, and does not
judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ds_rag.data.formats import Passage, Row

Spread = dict[str, float]  # min, median, 95%, max


def normalised(text: str) -> str:
    """A text normalised for case and blanks: texts that differ only in these are the same passage."""
    return " ".join(text.casefold().split())


def spread(values: Sequence[int]) -> Spread:
    """Minimum, median, 95th percentile and maximum of whole numbers; empty where there are none."""
    if not len(values):
        return {}
    points = np.percentile(np.asarray(values), [0, 50, 95, 100], method="higher")
    return dict(zip(("min", "median", "95%", "max"), points.tolist(), strict=True))


def labels(rows: Sequence[Row]) -> dict[str, int]:
    """Property -> number of rows that have it."""
    tests: dict[str, Callable[[Row], object]] = {
        "with labelled positives": lambda row: row.positives,
        "without labelled positives": lambda row: not row.positives,
        "with unlabelled candidates": lambda row: row.passages,
        "with labelled negatives": lambda row: row.negatives,
        "without any passage": lambda row: not row.positives and not row.passages,
        "without an answer": lambda row: not row.answers,
        "with several answers": lambda row: len(row.answers) > 1,
        "with a teacher's scores": lambda row: row.scores,
    }
    return {name: sum(bool(test(row)) for row in rows) for name, test in tests.items()}


def per_row(rows: Sequence[Row]) -> dict[str, Spread]:
    """The number of passages in a row, by their role, and of answers."""
    return {
        "positives": spread([len(row.positives) for row in rows]),
        "candidates, all": spread([len(row.positives + row.passages + row.negatives) for row in rows]),
        "answers": spread([len(row.answers) for row in rows]),
    }


def repeated_queries(rows: Sequence[Row]) -> dict[str, int]:
    """The number of queries that occur more than once, ignoring case and blanks, and of those whose answers differ."""
    answers: dict[str, set[tuple[str, ...]]] = {}
    for row in rows:
        answers.setdefault(normalised(row.query), set()).add(tuple(sorted(map(normalised, row.answers))))
    return {
        "repeated queries": len(rows) - len(answers),
        "queries with differing answers": sum(len(found) > 1 for found in answers.values()),
    }


def effective_number(sizes: Iterable[int]) -> float:
    """(sum n)^2 / sum n^2: how many clusters of one size would vary as much as clusters of these sizes do, if rows of a
    cluster were all alike (Kish 1965, Survey Sampling, the effective sample size of weights n). 0 where there are
    none."""
    sizes = list(sizes)
    return sum(sizes) ** 2 / sum(n * n for n in sizes) if any(sizes) else 0.0


def documents(names: Iterable[str | None]) -> dict[str, float]:
    """Of the documents of rows, one name a row: the number of rows that have one, of documents, and how many documents
    of one size that is worth."""
    sizes = Counter(name for name in names if name is not None)
    return {
        "rows with a document": sizes.total(),
        "documents": len(sizes),
        "effective number of documents": round(effective_number(sizes.values()), 2),
    }


def repeated_texts(corpus: Sequence[Passage]) -> dict[str, int]:
    """The number of passages that repeat the text of another: exactly, and ignoring case and blanks."""
    texts = [passage.text for passage in corpus]
    return {
        "repeated texts": len(texts) - len(set(texts)),
        "repeated but for case and blanks": len(texts) - len(set(map(normalised, texts))),
    }


def overlap(train: Sequence[Row], evaluation: Sequence[Row]) -> dict[str, int]:
    """The number of evaluation queries, and of labelled evaluation passages, that are in training rows too, ignoring
    case and blanks. With one corpus for both, shared passages are common and harmless."""

    def passages(rows: Iterable[Row], role: str) -> set[str]:
        return {normalised(text) for row in rows for text in getattr(row, role)}

    asked, labelled = {normalised(row.query) for row in train}, passages(evaluation, "positives")
    seen = passages(train, "positives") | passages(train, "passages") | passages(train, "negatives")
    return {
        "queries": sum(normalised(row.query) in asked for row in evaluation),
        "of queries": len(evaluation),
        "labelled passages": len(labelled & seen),
        "of labelled passages": len(labelled),
    }
