"""BM25 of the queries and passages of a training batch, as a retriever's prior adds it to its scores.

The scores of a batch are `s_ij / temperature + w b_ij`: b is BM25 divided by its query's spread (`scale_of` in
lexical.py), and w a parameter of the retriever. What the words say already, the encoder need not learn; it is taught
the rest (CLEAR: Gao, Dai, Chen, Fan, Van Durme and Callan 2021, arXiv:2004.13969, where w is a constant and the rest is
taught by a margin).

Shape legend: B queries of a batch, N passages of its pool, W different words of its queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ds_rag.index.lexical import LexicalIndex, scale_of


class LexicalPairs:
    """b of any training row and passage. The words of all passages are counted once; a batch then costs what its
    queries and its pool have in words, and a query's scale one search, when it is first read.

    queries: of the training rows. texts: all passages. allowed: (passages,) bool, those that training may have as
    candidates: the others are not read, so that nothing of theirs is in the words' statistics; None: all may.
    """

    def __init__(self, queries: Sequence[str], texts: Sequence[str], allowed: np.ndarray | None = None):
        numbers = np.arange(len(texts)) if allowed is None else np.flatnonzero(allowed)
        self.place = np.full(len(texts), -1)
        self.place[numbers] = np.arange(len(numbers))
        self.queries, self.index = queries, LexicalIndex([texts[n] for n in numbers.tolist()])
        terms, passages, starts = self.index.postings
        order = np.argsort(passages, kind="stable")  # from entries by word to entries by passage
        self.terms, self.words = terms[order], np.repeat(np.arange(len(starts) - 1), np.diff(starts))[order]
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(passages, minlength=len(numbers)))])
        self.known: dict[int, tuple[list[int], float]] = {}  # row -> its query's words, and its scores' scale

    def __call__(self, rows: Sequence[int], passages: Sequence[int]) -> np.ndarray:
        """(B, N) float32. rows: numbers of training rows; passages: of passages that are allowed."""
        places = self.place[list(passages)]
        assert (places >= 0).all(), "a passage that training may not have"
        counts_BW, asked_W = self._counts(rows)
        terms_WN = np.zeros((len(asked_W), len(places)))
        for column, place in enumerate(places):
            entries = slice(self.starts[place], self.starts[place + 1])
            _, row, entry = np.intersect1d(asked_W, self.words[entries], assume_unique=True, return_indices=True)
            terms_WN[row, column] = self.terms[entries][entry]
        return (counts_BW @ terms_WN).astype(np.float32)

    def _counts(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(B, W) float64: how often each word is in each query, times the scale of the query's scores; (W,) the words'
        numbers, rising."""
        found = [self.known.get(row) or self.known.setdefault(row, self._read(row)) for row in rows]
        asked_W = np.unique([word for known, _ in found for word in known]).astype(np.int64)
        counts_BW = np.zeros((len(rows), len(asked_W)))
        for line, (known, scale) in zip(counts_BW, found, strict=True):
            np.add.at(line, np.searchsorted(asked_W, known), scale)
        return counts_BW, asked_W

    def _read(self, row: int) -> tuple[list[int], float]:
        """The words of a row's query, and the scale of its scores."""
        query = self.queries[row]
        return self.index.known(query), scale_of(self.index.scores(query))
