"""FAISS: building by name or factory string, and searching. Inner product throughout."""

from __future__ import annotations

from typing import Any

import numpy as np

from ds_rag.errors import UserError

# Short names for common choices; any other text is handed to faiss.index_factory as it is.
INDEXES = {"flat": "Flat", "hnsw": "HNSW32", "ivf": "IVF1024,Flat", "ivfpq": "IVF1024,PQ48"}


def check_factory(factory: str, dimension: int) -> None:
    """Raises UserError for a factory string that FAISS refuses; that it fits the corpus shows when it is built."""
    import faiss

    try:
        faiss.index_factory(dimension, INDEXES.get(factory, factory), faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise refusal(factory, f"vectors of {dimension}", error) from None


def refusal(factory: str, what: str, error: Exception) -> UserError:
    return UserError(
        f"--index_factory {factory}: FAISS refused it for {what}",
        found=str(error).strip().splitlines()[-1],
        expected=f"{' | '.join(INDEXES)}, or a faiss.index_factory string that fits",
    )


def build_index(vectors_ND: np.ndarray, factory: str) -> Any:
    """A FAISS index over float32 vectors (N, D), trained on them where its kind needs training.

    Raises UserError for a factory string that FAISS refuses, or that needs more vectors than there are.
    """
    import faiss

    name = INDEXES.get(factory, factory)
    try:
        index = faiss.index_factory(vectors_ND.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(vectors_ND)
        index.add(vectors_ND)
    except RuntimeError as error:
        raise refusal(factory, f"{vectors_ND.shape[0]} vectors of {vectors_ND.shape[1]}", error) from None
    return index


def search(index: Any, queries_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores_Bk float32, numbers_Bk int64), best first; k is cut to the index's size. -1 where an approximate
    index found fewer."""
    scores_Bk, numbers_Bk = index.search(np.ascontiguousarray(queries_BD, dtype=np.float32), min(k, index.ntotal))
    return scores_Bk, numbers_Bk
