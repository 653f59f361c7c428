"""Candidates by words: the passages that BM25 finds for each training query. They depend on texts alone, not on
weights, so that a run finds them once."""

from __future__ import annotations

import numpy as np

from ds_rag.data.dataset import RagData
from ds_rag.evaluation.retrieval import search_words
from ds_rag.runtime.console import Console


def passages_by_words(data: RagData, console: Console, deep: int) -> np.ndarray:
    """(training rows, deep) int32: each row's first passages, best first, equal scores by passage number; -1 where
    there are no more. All ranks together, with the same result.

    Only passages that training may have as candidates (`RagData.allowed`) are searched, and only these give the words
    their weights, so that nothing of held-out documents is used.
    """
    numbers_N = np.arange(data.corpus_size)
    if data.allowed is not None:
        numbers_N = numbers_N[data.allowed[: data.corpus_size]]
    texts = [data.texts[n] for n in numbers_N]
    _, places_RK = search_words(texts, [row.query for row in data.train], deep, console)
    found_RK = np.full((len(data.train), deep), -1, dtype=np.int32)
    found_RK[:, : places_RK.shape[1]] = numbers_N[places_RK]
    return found_RK
