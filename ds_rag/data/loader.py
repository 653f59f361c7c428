"""From tokenised rows to micro-batches: order, length groups, collation.

The stream of rows is one permutation per epoch, concatenated and cut into global batches: every row is seen equally
often, and the last batch of an epoch has full size. The position in the stream depends on the step number only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ds_rag.data.batch import Batch, Ids, Share, pad_right
from ds_rag.data.dataset import Example, TokenTable

GROUP = 16  # global batches that are sorted by length together


@dataclass
class TrainTokens:
    """The tokenised training data; the generator's tables are None where no generator is used."""

    queries: TokenTable  # of rows, the retriever's
    passages: TokenTable  # of the passage table, the retriever's
    generator_queries: TokenTable | None = None
    generator_passages: TokenTable | None = None
    generator_answers: TokenTable | None = None


@dataclass(frozen=True)
class BatchOptions:
    """batch: rows of a micro-batch of one rank. accumulation: micro-batches of an optimizer step. rank, world: of the
    process group. seed: of the rows' order. pad: the retriever's padding token. shared_pool, keep_own: see `Loader`.

    Example:
        >>> options = ds_rag.BatchOptions(batch=8, accumulation=4)  # 32 rows a step
    """

    batch: int
    accumulation: int = 1
    rank: int = 0
    world: int = 1
    seed: int = 0
    pad: int = 0
    shared_pool: bool = False
    keep_own: bool = True


class Loader:
    """`micro_batches(step)` are this rank's micro-batches of one optimizer step.

    Micro-batch m of rank r is slice m * world + r of the step's global batch, so that two ranks see
    together what one rank sees in two micro-batches. shared_pool: the slices of all ranks are one batch that every rank
    holds; each rank embeds and scores its part of it, and each passage belongs to one rank.

    After `offer`, rows contribute the passages that an index found for them, instead of their own unlabelled ones, or
    in addition to them (keep_own). The order of rows does not depend on it.

    words: (rows, passages) -> their scores by words, (B, N) float32, which every batch then has (`Batch.words_BN`).
    """

    words: Callable[[Sequence[int], Sequence[int]], np.ndarray] | None = None

    def __init__(self, rows: Sequence[Example], tokens: TrainTokens, options: BatchOptions):
        self.rows, self.tokens, self.pad = rows, tokens, options.pad
        self.batch, self.accumulation, self.seed = options.batch, options.accumulation, options.seed
        self.rank, self.world, self.keep_own = options.rank, options.world, options.keep_own
        self.shared_pool = options.shared_pool and options.world > 1
        self.found_RK: np.ndarray | None = None
        self.global_batch = self.batch * self.accumulation * self.world
        self.lengths = np.array([self._length(n) for n in range(len(rows))])
        self._orders: dict[int, np.ndarray] = {}  # by epoch

    def _length(self, row: int) -> int:
        own = self.rows[row].own
        return len(self.tokens.queries[row]) + sum(len(self.tokens.passages[p]) for p in own) // max(1, len(own))

    @property
    def steps_per_epoch(self) -> float:
        return len(self.rows) / self.global_batch

    def micro_batches(self, step: int) -> list[Batch]:
        rows = self.rows_of(step)
        if self.shared_pool:
            whole = self.batch * self.world
            return [self.collate_shard(rows[m * whole :][:whole]) for m in range(self.accumulation)]
        parts = [rows[(m * self.world + self.rank) * self.batch :][: self.batch] for m in range(self.accumulation)]
        return [self.collate(part) for part in parts]

    def rows_of(self, step: int) -> list[int]:
        """Row numbers of a step's global batch, the same on every rank."""
        stream = np.arange(step * self.global_batch, (step + 1) * self.global_batch)
        epochs, places = np.divmod(stream, len(self.rows))
        needed = np.unique(epochs).tolist()
        self._orders = {e: self._orders[e] if e in self._orders else self._order(e) for e in needed}
        return [int(self._orders[e][p]) for e, p in zip(epochs.tolist(), places.tolist(), strict=True)]

    def _order(self, epoch: int) -> np.ndarray:
        """(rows,) a permutation: rows of similar length share a global batch, and the batches come in random order.

        Only full batches within one epoch are grouped: across epochs a row could be twice in a batch.
        """
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.rows))
        begin = -epoch * len(order) % self.global_batch  # these rows complete the last epoch's last batch
        for start in range(begin, len(order), GROUP * self.global_batch):
            group = order[start : start + GROUP * self.global_batch]
            whole = group[: len(group) // self.global_batch * self.global_batch]  # a view
            batches = whole[np.argsort(self.lengths[whole], kind="stable")].reshape(-1, self.global_batch)
            whole[:] = rng.permutation(batches).ravel()
        return order

    def offer(self, found_RK: np.ndarray | None) -> None:
        """Sets the retrieved candidates: (rows, K) passage numbers, best first, -1 for none, the same on every rank.
        None: no retrieved candidates."""
        assert found_RK is None or len(found_RK) == len(self.rows), (found_RK.shape, len(self.rows))
        self.found_RK = found_RK

    def passages_of(self, row: int) -> tuple[int, ...]:
        """The passages that the row contributes to its micro-batch, each once. A positive that was also retrieved stays
        a positive."""
        example = self.rows[row]
        if self.found_RK is None:
            return example.own
        kept = example.own if self.keep_own else example.positives + example.negatives
        found = self.found_RK[row]
        return tuple(dict.fromkeys([*kept, *found[found >= 0].tolist()]))

    def collate(self, rows: Sequence[int]) -> Batch:
        """One micro-batch: its pool is the passages that its rows contribute, each once."""
        brought = [self.passages_of(r) for r in rows]
        pool = list(dict.fromkeys(p for passages in brought for p in passages))
        column = {p: n for n, p in enumerate(pool)}
        own = torch.zeros(len(rows), len(pool), dtype=torch.bool)
        positive, also = torch.zeros_like(own), torch.zeros_like(own)
        for n, (row, passages) in enumerate(zip(rows, brought, strict=True)):
            own[n, [column[p] for p in passages]] = True
            positive[n, [column[p] for p in self.rows[row].positives]] = True
            also[n, [column[p] for p in self.rows[row].also if p in column]] = True
        t = self.tokens
        return Batch(
            queries=pad_right([t.queries[r] for r in rows], self.pad),
            passages=pad_right([t.passages[p] for p in pool], self.pad),
            own_BN=own,
            positive_BN=positive,
            query_ids=pick(t.generator_queries, rows),
            passage_ids=pick(t.generator_passages, pool),
            answer_ids=pick(t.generator_answers, rows),
            rows=list(rows),
            also_BN=also if also.any() else None,
            passage_numbers=pool,
            words_BN=None if self.words is None else torch.from_numpy(self.words(rows, pool)),
            teacher_BN=self.teacher_scores(rows, brought, column) if any(self.rows[r].scores for r in rows) else None,
        )

    def teacher_scores(
        self, rows: Sequence[int], brought: Sequence[Sequence[int]], column: Mapping[int, int]
    ) -> torch.Tensor:
        """`Batch.teacher_BN`. brought: each row's passages. column: of a passage in the pool."""
        teacher_BN = torch.full((len(rows), len(column)), torch.nan, dtype=torch.float64)
        for n, (row, passages) in enumerate(zip(rows, brought, strict=True)):
            for passage, score in self.rows[row].scores.items():
                if passage in passages:
                    teacher_BN[n, column[passage]] = score
        return teacher_BN

    def collate_shard(self, rows: Sequence[int]) -> Batch:
        """The batch of all ranks, holding the tokens that this rank's retriever embeds."""
        batch = self.collate(rows)
        lengths = (batch.passages.mask_BT.sum(1)).tolist()
        columns = deal(lengths, self.world)
        shares = [
            Share(list(range(r * self.batch, min((r + 1) * self.batch, len(rows)))), columns[r])
            for r in range(self.world)
        ]
        own = shares[self.rank]
        # A rank without a passage embeds the first one and ignores it: every forward needs queries and passages.
        batch.queries = batch.queries.take(own.rows)
        batch.passages = batch.passages.take(own.columns or [0])
        batch.shares = shares
        return batch


def deal(lengths: Sequence[int], hands: int) -> list[list[int]]:
    """The numbers of `lengths` in `hands` lists of nearly equal total length, longest first."""
    dealt: list[list[int]] = [[] for _ in range(hands)]
    totals = [0] * hands
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        least = totals.index(min(totals))
        dealt[least].append(n)
        totals[least] += lengths[n]
    return dealt


def pick(table: TokenTable | None, numbers: Sequence[int]) -> list[Ids]:
    return [] if table is None else [table[n] for n in numbers]
