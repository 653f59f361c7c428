"""Finding passages for the evaluation's queries.

Shape legend: Q queries, K passages of a query, best first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ds_rag.data.dataset import TokenTable
from ds_rag.index.corpus_index import CorpusIndex
from ds_rag.index.encode import encode
from ds_rag.models.retriever import Retriever
from ds_rag.runtime.console import Console

Found = tuple[np.ndarray, np.ndarray]  # scores_QK float32, numbers_QK int64; -1: an approximate index found fewer


@dataclass(frozen=True)
class Wanted:
    """depth: passages for each query. batch: queries that are embedded at once."""

    depth: int
    batch: int


def search(
    index: CorpusIndex, retriever: Retriever, queries: TokenTable, wanted: Wanted, console: Console | None = None
) -> Found:
    """The passages nearest to each query's vector, on every rank. All ranks together; console: for the progress."""
    vectors_QD = encode(retriever, queries, "query", wanted.batch)
    with (console or Console(speaks=False)).progress(len(vectors_QD), "searching", unit="query") as meter:
        return index.search(vectors_QD, wanted.depth, meter.advance)
