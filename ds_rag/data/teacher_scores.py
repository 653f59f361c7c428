"""A teacher's scores in rows: as many numbers as a row has passages, in any unit, higher is better.

| columns | written by |
|---|---|
| `passages`, `teacher_scores` or `scores` | `ds-rag score --out` |
| `pos`, `neg`, `teacher_scores`, first of `pos`, then of `neg` | LLM-Embedder |
| `pos`, `pos_scores`, `neg`, `neg_scores` | FlagEmbedding |
| `positive`, `negative_1` ..., `label`, a list of fractions | sentence-transformers, for DistillKLDivLoss |
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

from ds_rag.data.bad_rows import Bad, Faults
from ds_rag.data.columns import SCORES, Names
from ds_rag.data.records import Record, short

Listed = Mapping[str, Sequence[str]]  # role -> texts of the row's passages in the file's order, repeated ones too
ORDERS = (("passages",), ("positives", "negatives"), ("positives", "passages", "negatives"))


def read_scores(record: Record, names: Names, listed: Listed, faults: Faults) -> dict[str, float]:
    """Text of a passage -> its score; empty where no column for scores is read. Raises Bad for scores that do not fit
    the passages, where they are needed (`Reading.scores` is True); else such a row is counted in `faults`."""
    if not set(SCORES) & set(names):
        return {}
    try:
        found = dict[str, float]()
        for text, score in pairs_of(record, names, listed):
            if found.setdefault(text, score) != score:
                raise Bad(f"a passage has the scores {found[text]:g} and {score:g}: {short(text)}")
        if not found:
            raise Bad(f"{quoted(names)} is empty, expected a score for each passage")
        return found
    except Bad as bad:
        if faults.reading.scores:
            raise
        faults.unscored.append(f"{record.where}: {bad}")
        return {}


def pairs_of(record: Record, names: Names, listed: Listed) -> Iterable[tuple[str, float]]:
    """(text, score) of every passage that has a score. Raises Bad."""
    if "scores" in names:
        (column,) = names["scores"]
        scores = numbers(record.fields.get(column), column)
        orders = [[text for role in roles for text in listed.get(role, ())] for roles in ORDERS]
        fitting = [texts for texts in orders if len(texts) == len(scores)]
        if not fitting:
            counts = " or ".join(map(str, sorted({len(texts) for texts in orders if texts})) or ["no"])
            raise Bad(f"'{column}' has {len(scores)} numbers, expected {counts}: one for each passage")
        return zip(fitting[0], scores, strict=True)
    pairs: list[tuple[str, float]] = []
    for role, of in (("positives", "pos_scores"), ("negatives", "neg_scores")):
        if of not in names and listed.get(role):
            raise Bad(f"no '{of}', expected scores of the {role} beside those of the others")
        if of in names:
            (column,), passages = names[of], listed.get(role, ())
            scores = numbers(record.fields.get(column), column)
            if len(scores) != len(passages):
                raise Bad(f"'{column}' has {len(scores)} numbers for {len(passages)} {role}, expected one for each")
            pairs += zip(passages, scores, strict=True)
    return pairs


def numbers(value: object, column: str) -> list[float]:
    """The numbers of a cell: one, or a list of them, possibly written as JSON. Raises Bad for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            raise Bad(f"'{column}' is {short(value)}, expected a list of numbers such as [1.5, -0.2]") from None
    found = list[float]()
    for place, one in enumerate(value if isinstance(value, list | tuple) else [] if value is None else [value]):
        if isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one):
            raise Bad(f"'{column}[{place}]' is {short(one)}, expected a finite number")
        found.append(float(one))
    return found


def holds_scores(records: Iterable[Record], column: str) -> bool:
    """Is a column named `label` a teacher's scores? Only if it has lists, and in one of them a fraction, which no
    label of relevance is."""
    for record in records:
        value = record.fields.get(column)
        try:
            found = numbers(value, column) if isinstance(value, str | list | tuple) else []
        except Bad:
            return False
        if len(found) > 1 and any(number != int(number) for number in found):
            return True
    return False


def quoted(names: Names) -> str:
    return " and ".join(f"'{column}'" for role in SCORES for column in names.get(role, ()))
