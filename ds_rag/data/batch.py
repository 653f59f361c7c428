"""What flows through a step: plain dataclasses of tensors and token ids.

Shape legend: B queries, N unique passages of the pool, K candidates per query, C cells, T tokens, A tokens of the
longest target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

Ids = np.ndarray  # int32 token ids of one text, 1-D


@dataclass
class Tokens:
    """Right-padded token ids (int64) and their mask (1: real)."""

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor

    def to(self, device: torch.device | str) -> Tokens:
        return Tokens(self.ids_BT.to(device), self.mask_BT.to(device))

    def take(self, rows: Sequence[int]) -> Tokens:
        """These rows, in this order, padded to the longest of them."""
        picked = torch.tensor(list(rows), dtype=torch.int64, device=self.ids_BT.device)
        mask = self.mask_BT[picked]
        width = int(mask.sum(1).max())
        return Tokens(self.ids_BT[picked, :width], mask[:, :width])


@dataclass(frozen=True)
class Share:
    """The part of a pool shared by all ranks that one rank embeds and scores with the generator."""

    rows: list[int]  # of B
    columns: list[int]  # of N


@dataclass
class Batch:
    """One micro-batch: the retriever's tokens, and the token ids from which the generator's cells are made.

    With `--pool world` every rank holds the same batch, except that `queries` and `passages` are only the texts that it
    embeds itself; `shares[rank]` says which rows and columns these are. With `--pool rank`, `shares` is empty.
    """

    queries: Tokens  # of this rank's rows, the retriever's tokenizer
    passages: Tokens  # of this rank's columns, every passage once
    own_BN: torch.Tensor  # bool: the row's own passages, labelled or not, and those retrieved for it
    positive_BN: torch.Tensor  # bool: its labelled positives
    query_ids: list[Ids]  # B, the generator's tokenizer; empty lists where there is no generator
    passage_ids: list[Ids]  # N
    answer_ids: list[Ids]  # B, with the end-of-sequence token
    rows: list[int]  # B, row numbers in the training data
    shares: list[Share] = field(default_factory=list)  # empty: this rank embeds everything
    also_BN: torch.Tensor | None = None  # bool: positives of other rows with the same query; None: there are none
    passage_numbers: list[int] = field(default_factory=list)  # N, in the passage table; empty: no table
    words_BN: torch.Tensor | None = None  # float32: BM25 of query and passage, where the retriever's scores have it
    teacher_BN: torch.Tensor | None = None  # float64: scores in the rows, NaN where there is none; None: in no row

    @property
    def copies(self) -> int:
        """Number of ranks that hold this same batch."""
        return max(1, len(self.shares))

    @property
    def answer_mask_BT(self) -> torch.Tensor:
        """(B, T) bool: real answer tokens, by position, so an end-of-sequence token counts even where it is also the
        padding token."""
        return lengths_to_mask([len(a) for a in self.answer_ids])

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            queries=self.queries.to(device),
            passages=self.passages.to(device),
            own_BN=self.own_BN.to(device),
            positive_BN=self.positive_BN.to(device),
            also_BN=None if self.also_BN is None else self.also_BN.to(device),
            words_BN=None if self.words_BN is None else self.words_BN.to(device),
            teacher_BN=None if self.teacher_BN is None else self.teacher_BN.to(device),
        )


@dataclass
class CellList:
    """(query, passage) sequences for the generator, before they are laid out for its forward.

    Cell c is `prefixes[prefix_C[c]]` followed by `suffixes[c]`; its last `target_lengths[c]` tokens are the target,
    which has at least one token before it. Cells of the same passage share one prefix.
    """

    prefixes: list[Ids]
    prefix_C: list[int]
    suffixes: list[Ids]
    target_lengths: list[int]
    query_C: list[int] = field(default_factory=list)  # row and column of the batch, where the cells come from one
    passage_C: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prefix_C)

    def take(self, cells: Sequence[int]) -> CellList:
        """These cells, in this order, and only the prefixes that they use."""
        kept = {p: n for n, p in enumerate(dict.fromkeys(self.prefix_C[c] for c in cells))}
        return CellList(
            [self.prefixes[p] for p in kept],
            [kept[self.prefix_C[c]] for c in cells],
            [self.suffixes[c] for c in cells],
            [self.target_lengths[c] for c in cells],
            [self.query_C[c] for c in cells] if self.query_C else [],
            [self.passage_C[c] for c in cells] if self.passage_C else [],
        )

    @property
    def target_length(self) -> int:
        """A: tokens of the longest target."""
        return max(self.target_lengths)


def list_cells(prefixes: Sequence[Ids], suffixes: Sequence[Ids], target_lengths: Sequence[int]) -> CellList:
    """Cells of prefixes[c] + suffixes[c]; equal prefixes are stored once."""
    number: dict[bytes, int] = {}
    prefix_C = [number.setdefault(p.tobytes(), len(number)) for p in prefixes]
    first = {n: p for n, p in zip(reversed(prefix_C), reversed(list(prefixes)), strict=True)}
    return CellList([first[n] for n in range(len(number))], prefix_C, list(suffixes), list(target_lengths))


@dataclass
class Cells:
    """Cells as plain sequences, one in each row: context padded on the left, target on the right, so that all targets
    begin in one column."""

    ids_CT: torch.Tensor  # int64
    mask_CT: torch.Tensor  # 1: real
    target_lengths: list[int]  # C, tokens of each target

    @property
    def target_length(self) -> int:
        """A: the last A columns hold the targets."""
        return max(self.target_lengths)

    @property
    def token_count(self) -> int:
        """Real tokens that the generator reads."""
        return int(self.mask_CT.sum())

    def to(self, device: torch.device | str) -> Cells:
        return Cells(self.ids_CT.to(device), self.mask_CT.to(device), self.target_lengths)


def lengths_to_mask(lengths: Sequence[int]) -> torch.Tensor:
    """(B, max length) bool, True at the first `lengths[i]` positions of row i."""
    return torch.arange(max(lengths, default=0))[None, :] < torch.tensor(list(lengths))[:, None]


def pad_right(texts: Sequence[Ids], pad: int) -> Tokens:
    """(B, longest) ids and mask."""
    mask = lengths_to_mask([len(t) for t in texts])
    ids = torch.full(mask.shape, pad, dtype=torch.int64)
    ids[mask] = torch.from_numpy(np.concatenate(texts).astype(np.int64)) if texts else ids.new_zeros(0)
    return Tokens(ids, mask.long())


def lay_out_cells(contexts: Sequence[Ids], targets: Sequence[Ids], pad: int) -> Cells:
    """Cells of contexts[c] followed by targets[c]."""
    width, length = max(len(c) for c in contexts), max(len(t) for t in targets)
    ids = np.full((len(contexts), width + length), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, (context, target) in enumerate(zip(contexts, targets, strict=True)):
        ids[row, width - len(context) : width] = context
        ids[row, width : width + len(target)] = target
        mask[row, width - len(context) : width + len(target)] = 1
    return Cells(torch.from_numpy(ids), torch.from_numpy(mask), [len(t) for t in targets])


def lay_out_plain(cells: CellList, pad: int) -> Cells:
    """Every cell as a sequence of its own."""
    whole = [np.concatenate([cells.prefixes[p], s]) for p, s in zip(cells.prefix_C, cells.suffixes, strict=True)]
    pairs = [np.split(ids, [len(ids) - n]) for ids, n in zip(whole, cells.target_lengths, strict=True)]
    return lay_out_cells([context for context, _ in pairs], [target for _, target in pairs], pad)
