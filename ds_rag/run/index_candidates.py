"""Candidates from the index: what the freshest index holds for each training query, until it is refreshed.

Approximate nearest neighbour contrastive estimation (Xiong et al. 2020, arXiv:2007.00808), with candidates for every
objective in the place of its negatives alone: all training queries are encoded and searched whenever the index has been
rebuilt, and rows bring what was found to their micro-batches. In between the table is stale by `age` steps.

Shape legend: B queries searched at once, R training rows, K passages found for each, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ds_rag.data.dataset import Example
from ds_rag.data.loader import Loader
from ds_rag.index.encode import encode
from ds_rag.models.retriever import Retriever
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # (queries_BD, k) -> scores_Bk, numbers_Bk
CHUNK = 4096  # queries searched at once


class Candidates:
    """Fills the loader's table. `step`: of the weights that the table was made with; -1 before the first. allowed: bool
    for each passage, see `RagData.allowed`."""

    def __init__(self, loader: Loader, count: int, corpus_size: int, batch: int, allowed: np.ndarray | None = None):
        self.loader, self.count, self.allowed = loader, count, allowed
        self.corpus_size, self.batch = corpus_size, batch
        self.step = -1

    def refresh(
        self, step: int, search: Search, retriever: Retriever, console: Console | None = None
    ) -> dict[str, float]:
        """Encodes and searches all training queries, on all ranks together; offers the loader what was found.

        retriever: with the weights that the index was made with, those of `step`. search: collective, with the same
        answer on every rank; numbers below 0 stand for no passage. Returns
        `distinct`, how many different passages the table holds (few: the retriever has collapsed), and, where rows
        are labelled, `retrieved_positive`: the share of these with a positive among their first `count` passages.
        """
        rows = self.loader.rows
        queries_RD = encode(retriever, self.loader.tokens.queries, "query", self.batch, console)
        parts, hits = [], []
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            deep = self.count + max(len(row.positives + row.also) for row in part)
            numbers_BK = self._find(queries_RD[start : start + CHUNK], deep, search)
            parts.append(without_positives(numbers_BK, part, self.count))
            hits += [
                bool(np.isin(found[: self.count], row.positives).any())
                for found, row in zip(numbers_BK, part, strict=True)
                if row.positives
            ]
        found_RK = np.concatenate(parts)
        self.loader.offer(found_RK)
        self.step = step
        figures = {"distinct": float(len(np.unique(found_RK[found_RK >= 0])))}
        return figures | ({"retrieved_positive": float(np.mean(hits))} if hits else {})

    def _find(self, queries_BD: np.ndarray, deep: int, search: Search) -> np.ndarray:
        """(B, deep) int: the first passages of each query that are `allowed`, -1 where there are no more. The search
        goes twice as deep until every query has as many, the same on every rank."""
        if self.allowed is None:
            return search(queries_BD, deep)[1]
        wanted, depth = min(deep, int(self.allowed[: self.corpus_size].sum())), deep
        while True:
            found_BK = search(queries_BD, depth)[1]
            fits_BK = (found_BK >= 0) & self.allowed[found_BK]
            if depth >= self.corpus_size or fits_BK.sum(1).min() >= wanted:
                break
            depth = min(2 * depth, self.corpus_size)
        kept_BK = np.full((len(found_BK), deep), -1, dtype=found_BK.dtype)
        for line, found, fits in zip(kept_BK, found_BK, fits_BK, strict=True):
            first = found[fits][:deep]
            line[: len(first)] = first
        return kept_BK

    def age(self, step: int) -> int:
        """Optimizer steps between the table's weights and those after `step` steps."""
        return step - self.step

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The table under a name that holds its step, for a checkpoint."""
        return {} if self.loader.found_RK is None else {f"candidates-{self.step}": self.loader.found_RK}

    def restore(self, checkpoint: Path) -> bool:
        """Offers the table that a checkpoint kept; False where it has none. Raises UserError for other rows' table."""
        file = next(checkpoint.glob("candidates-*.npy"), None)
        if file is None:
            return False
        found_RK = np.load(file)
        if len(found_RK) != len(self.loader.rows) or found_RK.max(initial=-1) >= self.corpus_size:
            raise UserError(
                f"{file}: candidates of other rows or of another corpus",
                found=f"{len(found_RK)} rows, passages up to {found_RK.max(initial=-1)}",
                expected=f"{len(self.loader.rows)} rows, passages below {self.corpus_size}",
                fix="resume with the same --train_data and --corpus",
            )
        self.loader.offer(found_RK)
        self.step = int(file.stem.removeprefix("candidates-"))
        return True


def without_positives(numbers_BK: np.ndarray, rows: Sequence[Example], count: int) -> np.ndarray:
    """(B, count) int32: each row's first passages that are no positives of its query, -1 where there are no more."""
    table = np.full((len(rows), count), -1, dtype=np.int32)
    for line, found, row in zip(table, numbers_BK, rows, strict=True):
        kept = found[(found >= 0) & ~np.isin(found, row.positives + row.also)][:count]
        line[: len(kept)] = kept
    return table
