"""Finding passages for the evaluation's queries: by vectors, or by words.

Shape legend: Q queries, K passages of a query, best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ds_rag.data.dataset import TokenTable
from ds_rag.index.corpus_index import CorpusIndex
from ds_rag.index.encode import encode
from ds_rag.index.lexical import LexicalIndex
from ds_rag.models.retriever import Retriever
from ds_rag.runtime import collectives
from ds_rag.runtime.console import Console
from ds_rag.runtime.long_waits import Pause, together

Found = tuple[np.ndarray, np.ndarray]  # scores_QK float32, numbers_QK int64; -1: an approximate index found fewer


@dataclass(frozen=True)
class SearchOptions:
    """depth: passages for each query. batch: queries that are embedded at once."""

    depth: int
    batch: int


def search(
    index: CorpusIndex, retriever: Retriever, queries: TokenTable, wanted: SearchOptions, console: Console | None = None
) -> Found:
    """The passages nearest to each query's vector, on every rank. All ranks together; console: for the progress."""
    vectors_QD = encode(retriever, queries, "query", wanted.batch)
    with (console or Console(speaks=False)).progress(len(vectors_QD), "searching", unit="query") as meter:
        return index.search(vectors_QD, wanted.depth, meter.advance)


def search_words(texts: Sequence[str], queries: Sequence[str], depth: int, console: Console | None = None) -> Found:
    """The same by BM25 over the corpus's texts. Rank 0 searches, and the others have its results."""
    with (console or Console(speaks=False)).progress(len(queries), "searching by words", unit="query") as meter:

        def work(pause: Pause) -> Found | None:
            first = collectives.rank() == 0
            return LexicalIndex(texts).search(queries, depth, meter.advance, pause) if first else None

        found: Found = collectives.from_first(together(work, "the search by words"))
    return found
