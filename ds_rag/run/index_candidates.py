"""Candidates from the index: the passages that the newest index retrieves for each training query, perhaps with those
that BM25 retrieves.

After each refresh of the index all training queries are encoded and searched in it. Until the next refresh every row
brings the passages that were found for it into its micro-batches; this table is stale by `age` steps. It follows
approximate nearest neighbour contrastive estimation (ANCE; Xiong et al. 2020, arXiv:2007.00808), which retrieves
negatives; here they are candidates of any objective.

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
from ds_rag.run.checkpoint_files import read_array
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # (queries_BD, k) -> scores_Bk, numbers_Bk
CHUNK = 4096  # queries searched at once
TABLE = "candidates-"  # prefix of the array in a checkpoint; its step follows


class Candidates:
    """Fills the loader's table of candidates. step: that of the weights which made the table; -1 before the first.

    count: passages for each row. batch: queries encoded at once; None: the index is not searched. allowed: see
    `RagData.allowed`. words: (depth) -> each row's first passages by words, see word_candidates.py; called once. With
    both, index and words give passages in turn, until there are `count` different ones.
    """

    def __init__(
        self,
        loader: Loader,
        count: int,
        corpus_size: int,
        batch: int | None,
        allowed: np.ndarray | None = None,
        words: Callable[[int], np.ndarray] | None = None,
    ):
        assert batch is not None or words is not None, "no source of candidates"
        self.loader, self.count, self.allowed = loader, count, allowed
        self.corpus_size, self.batch, self.words = corpus_size, batch, words
        self.words_RK: np.ndarray | None = None
        self.step = -1

    @property
    def searches_index(self) -> bool:
        return self.batch is not None

    @property
    def are_final(self) -> bool:
        """Does the table stay as it is? So it is where it has only passages that were found by words."""
        return not self.searches_index and self.loader.found_RK is not None

    def refresh(
        self, step: int, search: Search, retriever: Retriever, console: Console | None = None
    ) -> dict[str, float]:
        """Encodes and searches all training queries, on all ranks together, and gives the loader the new table. What is
        found by words is searched for at the first call only.

        retriever: has the weights of `step`, which made the index. search: is called on all ranks with the same
        queries and returns the same result; a number below 0 means no passage. Returns `distinct`, the number of
        different passages in the table (few: the retriever has collapsed), and, if rows are labelled,
        `retrieved_positive`: the fraction of labelled rows with a positive among their first `count` passages.
        """
        rows = self.loader.rows
        if self.batch is not None:
            queries_RD = encode(retriever, self.loader.tokens.queries, "query", self.batch, console)
        if self.words is not None and self.words_RK is None:
            self.words_RK = self.words(self.count + max(len(row.positives + row.also) for row in rows))
        parts, hits = [], []
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            deep = self.count + max(len(row.positives + row.also) for row in part)
            lists = [] if self.batch is None else [self._find(queries_RD[start : start + CHUNK], deep, search)]
            lists += [] if self.words_RK is None else [self.words_RK[start : start + CHUNK]]
            found_BK = in_turn(lists)
            parts.append(without_positives(found_BK, part, self.count))
            hits += [
                bool(np.isin(found[: self.count], row.positives).any())
                for found, row in zip(found_BK, part, strict=True)
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
        """The table for a checkpoint, under a name that contains its step."""
        return {} if self.loader.found_RK is None else {f"{TABLE}{self.step}": self.loader.found_RK}

    def restore(self, checkpoint: Path) -> bool:
        """Gives the loader the table of a checkpoint; returns False if it contains none. Raises UserError if the table
        belongs to other rows or to another corpus."""
        found = read_array(checkpoint, TABLE)
        if found is None:
            return False
        step, found_RK = found
        if len(found_RK) != len(self.loader.rows) or found_RK.max(initial=-1) >= self.corpus_size:
            raise UserError(
                f"{checkpoint}: candidates of other rows or of another corpus",
                found=f"{len(found_RK)} rows, passages up to {found_RK.max(initial=-1)}",
                expected=f"{len(self.loader.rows)} rows, passages below {self.corpus_size}",
                fix="resume with the same --train_data and --corpus",
            )
        self.loader.offer(found_RK)
        self.step = int(step)
        return True


def in_turn(tables: Sequence[np.ndarray]) -> np.ndarray:
    """(B, sum of K) int32: for each row the first passage of every table, then the second of every table, and so on,
    each passage once; then -1."""
    if len(tables) == 1:
        return tables[0]
    width = max(table.shape[1] for table in tables)
    level = [np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=-1) for table in tables]
    joined_BK = np.stack(level, axis=2).reshape(len(tables[0]), -1).astype(np.int32)
    for line in joined_BK:
        kept = list(dict.fromkeys(n for n in line.tolist() if n >= 0))
        line[:] = kept + [-1] * (len(line) - len(kept))
    return joined_BK


def without_positives(numbers_BK: np.ndarray, rows: Sequence[Example], count: int) -> np.ndarray:
    """(B, count) int32: for each row the first passages that are not positives of its query, then -1."""
    table = np.full((len(rows), count), -1, dtype=np.int32)
    for line, found, row in zip(table, numbers_BK, rows, strict=True):
        kept = found[(found >= 0) & ~np.isin(found, row.positives + row.also)][:count]
        line[: len(kept)] = kept
    return table
