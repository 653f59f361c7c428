"""The results of an evaluation for each question, and their two files: a Parquet table and a TREC run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ds_rag.runtime.atomic_files import replacing
from ds_rag.runtime.errors import UserError

TABLE, RUN = ".questions.parquet", ".trec"  # suffixes of the two files
SIGNATURE = b"ds_rag_signature"  # key of the table's metadata
FIXED = ("id", "document", "retrieved", "scores")  # columns that are neither metrics nor details


@dataclass
class PerQuestion:
    """Results of Q questions: every list has one entry per question, in the order of the rows.

    Attributes:
        ids: the questions' ids, distinct.
        documents: the document (cluster) to which a question belongs; None if its row names none.
        metrics: name -> (Q,) float64; NaN if a question has no value, such as recall for a row without labels.
        retrieved: ids of the passages that were found, best first.
        scores: their scores, float64, higher is better.
        details: further columns for people to read (`query`, `gold`, `answer` ...), each of length Q.
        signature: models, data and settings of the evaluation (`signature.py`).
    """

    ids: list[str]
    documents: list[str | None]
    metrics: dict[str, np.ndarray]
    retrieved: list[list[str]] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    details: dict[str, list[Any]] = field(default_factory=dict)
    signature: dict[str, Any] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """Each metric's mean over the questions that have a value."""
        return {k: float(np.nanmean(v)) for k, v in self.metrics.items() if np.isfinite(v).any()}


def write_per_question(found: PerQuestion, stem: str | Path) -> tuple[Path, Path]:
    """Writes STEM.questions.parquet and STEM.trec, each complete or not at all. Returns their paths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = len(found.ids)
    columns: dict[str, Any] = {
        "id": pa.array(found.ids, pa.string()),
        "document": pa.array(found.documents, pa.string()),
        **{name: pa.array(values, pa.float64()) for name, values in found.metrics.items()},
        **{name: pa.array(values) for name, values in found.details.items()},
        "retrieved": pa.array(found.retrieved or [[]] * count, pa.list_(pa.string())),
        "scores": pa.array(found.scores or [[]] * count, pa.list_(pa.float64())),
    }
    table = pa.table(columns)
    kinds = {"metrics": list(found.metrics), "details": list(found.details)}
    table = table.replace_schema_metadata({SIGNATURE: json.dumps({"signature": found.signature, **kinds})})
    paths = Path(f"{stem}{TABLE}"), Path(f"{stem}{RUN}")
    with replacing(paths[0], binary=True) as stream:
        pq.write_table(table, stream)
    with replacing(paths[1]) as stream:
        stream.writelines(trec_lines(found))
    return paths


def trec_lines(found: PerQuestion, tag: str = "ds_rag") -> list[str]:
    """Lines `question Q0 passage rank score tag`, as trec_eval reads them. Blanks in ids are percent-encoded."""
    lines = []
    for id_, passages, scores in zip(found.ids, found.retrieved, found.scores, strict=True):
        for rank, (passage, score) in enumerate(zip(passages, scores, strict=True), start=1):
            lines.append(f"{trec_word(id_)} Q0 {trec_word(passage)} {rank} {score!r} {tag}\n")
    return lines


def trec_word(id_: str) -> str:
    """An id without blanks or control characters, which would end a field of a TREC file."""
    return "".join(quote(c) if c.isspace() or not c.isprintable() or c == "%" else c for c in id_)


def read_per_question(path: str | Path) -> PerQuestion:
    """Reads STEM.questions.parquet. Raises UserError where the file is not such a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        facts = json.loads((table.schema.metadata or {})[SIGNATURE])
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
        metrics = {name: np.array(columns[name], dtype=np.float64) for name in facts["metrics"]}
        details = {name: columns[name] for name in facts["details"]}
        fixed = [columns[name] for name in FIXED]
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"{path} is not a table of results per question",
            found=f"{type(error).__name__}: {error}",
            expected=f"a file that an evaluation wrote, ending in {TABLE}",
            fix="evaluate again with --json FILE: the table is written beside FILE",
        ) from None
    return PerQuestion(fixed[0], fixed[1], metrics, fixed[2], fixed[3], details, facts["signature"])
