"""Cells from texts: each query with each of its passages, as the generator reads them.

Shape legend: B queries, K candidate passages of a query, N distinct passages, A tokens of the longest answer,
C = B * K cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from ds_rag.data.batch import CellList, Ids, lengths_to_mask, list_cells
from ds_rag.data.prompt import Prompt
from ds_rag.runtime.errors import UserError


@dataclass(frozen=True)
class QueryCells:
    """Each query with each of its K passages, made by `cells` and read by `score_cells`.

    sequences: the B * K of them, query by query. answer_mask_BA: bool, True at the answer's tokens, the
    end-of-sequence token among them; what a loss takes as `answer_mask_BT`.

    Example:
        >>> pairs = ds_rag.cells(prompt, ["who ?"], [["ann was here", "bob was here", "kelp grows"]], ["ann"])
        >>> B, K, A = pairs.shape
        >>> B, K, A == pairs.answer_mask_BA.sum()
        (1, 3, tensor(True))
    """

    sequences: CellList
    answer_mask_BA: torch.Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, K, A)"""
        B, A = self.answer_mask_BA.shape
        return B, len(self.sequences) // B, A


def cells(
    prompt: Prompt,
    queries: Sequence[str],
    passages: Sequence[Sequence[str]],
    answers: Sequence[str],
    *,
    max_query_length: int = 64,
    max_passage_length: int = 200,
    max_answer_length: int = 64,
) -> QueryCells:
    """The sequences `prompt(passage, query) answer` for each query and each of its passages.

    A passage that several queries have is tokenised once, and read once by a generator that shares prefixes.

    Args:
        prompt: puts passage and query together.
        queries: B texts.
        passages: B lists of K texts, K the same for all queries.
        answers: B texts; where the tokenizer has an end-of-sequence token, it is added.
        max_query_length, max_passage_length, max_answer_length: tokens beyond these are cut. Where the model's own
            length requires it, the passage is cut further, never the query or the answer.

    Raises:
        UserError: other numbers of queries, lists and answers; unequal numbers of passages; an empty answer; a query
            and an answer that do not fit into the generator's length.

    Example:
        >>> pairs = ds_rag.cells(prompt, ["who ?", "where ?"], [["ann", "bob"], ["bob", "eve"]], ["ann", "here"])
        >>> pairs.shape[:2], len(pairs.sequences.prefixes)  # two queries, two passages each, three of them distinct
        ((2, 2), 3)
        >>> pairs.answer_mask_BA.dtype
        torch.bool
    """
    check_counts(queries, passages, answers)
    number = {text: n for n, text in enumerate(dict.fromkeys(chain.from_iterable(passages)))}

    def ids(name: str, texts: Sequence[str], length: int) -> Sequence[Ids]:
        return [np.array(x, dtype=np.int32) for x in prompt.encode(name, texts, length)]

    answer_ids = ids("answer", answers, max_answer_length)
    listed = list_pairs(
        prompt,
        ids("query", queries, max_query_length),
        ids("passage", list(number), max_passage_length),
        answer_ids,
        [[number[text] for text in row] for row in passages],
    )
    return QueryCells(listed, lengths_to_mask([len(a) for a in answer_ids]))


def check_counts(queries: Sequence[str], passages: Sequence[Sequence[str]], answers: Sequence[str]) -> None:
    """Raises UserError unless every query has an answer and as many passages as the others."""
    if isinstance(passages, str) or any(isinstance(row, str) for row in passages):
        raise UserError("cells: passages that are one text", expected="a list of texts for each query")
    counts = {"queries": len(queries), "lists of passages": len(passages), "answers": len(answers)}
    if len(set(counts.values())) > 1 or not queries:
        raise UserError(
            "cells: each query needs a list of passages and an answer",
            found=", ".join(f"{count} {name}" for name, count in counts.items()),
            expected="equal numbers, one or more",
        )
    sizes = {len(row) for row in passages}
    if len(sizes) > 1 or sizes == {0}:
        raise UserError(
            "cells: queries with unequal numbers of passages" if len(sizes) > 1 else "cells: queries without a passage",
            found=sorted(sizes),
            expected="the same number for each query, 1 or more",
        )
    if "" in answers:
        raise UserError("cells: an empty answer", found=f"of query {list(answers).index('')}", expected="a text")


def list_pairs(
    prompt: Prompt,
    query_ids: Sequence[Ids],
    passage_ids: Sequence[Ids],
    answer_ids: Sequence[Ids],
    columns: Sequence[Sequence[int]],
) -> CellList:
    """The cells (i, j) for every j of `columns[i]`, query by query; the answer is the target."""
    pairs = [(i, j) for i, row in enumerate(columns) for j in row]
    texts = [prompt.split(passage_ids[j], query_ids[i], len(answer_ids[i])) for i, j in pairs]
    listed = list_cells(
        [prefix for prefix, _ in texts],
        [np.concatenate([rest, answer_ids[i]]) for (i, _), (_, rest) in zip(pairs, texts, strict=True)],
        [len(answer_ids[i]) for i, _ in pairs],
    )
    listed.query_C, listed.passage_C = [i for i, _ in pairs], [j for _, j in pairs]
    return listed
