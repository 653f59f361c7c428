"""The same query on two rows with different positives: neither's is a negative of the other.

Values and gradients of every term that has negatives in the pool: infonce by rows and by columns, positive_only with
its prior, --contrastive_weight, --prior pool; the choice of candidates; candidates from the index; pools of a rank and
of the world; mining is in test_mine.py.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ds_rag.config import build
from ds_rag.data.batch import Batch
from ds_rag.data.dataset import Example, TokenTable, assume_first, with_also
from ds_rag.data.loader import BatchOptions, Loader, TrainTokens
from ds_rag.run.index_candidates import without_positives
from ds_rag.step.candidates import choose_candidates
from ds_rag.step.objectives import Micro, make_objective
from ds_rag.step.objectives.marginal import RagSequence

# Rows 0 and 1 ask the same (but for case and blanks) and have passages 0 and 1; row 2 brings 2, and has 3 as negative.
ROWS = [Example("who ?", ("a",), (0,), ()), Example("WHO  ?", ("a",), (1,), ()), Example("b", ("b",), (2,), (3,))]
TOTALS = {"queries": 3.0, "pairs": 3.0, "answer_tokens": 6.0, "all_tokens": 9.0}


def table(count: int) -> TokenTable:
    return TokenTable(np.arange(2 * count, dtype=np.int32) % 50, np.arange(2, 2 * count + 1, 2))


def batch_of(rows: list[Example], world: int = 1) -> Batch:
    n = len(rows)
    tokens = TrainTokens(table(n), table(5), table(n), table(5), table(n))
    loader = Loader(with_also(rows), tokens, BatchOptions(n // world, 1, 0, world, 0, 0, shared_pool=world > 1))
    return loader.collate_shard(range(n)) if world > 1 else loader.collate(range(n))


def scores() -> torch.Tensor:
    return torch.tensor(np.random.default_rng(0).normal(size=(3, 4)), requires_grad=True)


def terms(flags: dict[str, Any], batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, gradient of the scores), of candidates that are each row's positive alone."""
    objective = make_objective(build(flags).objective)
    scores_BN = scores()
    positive = flags["objective"] == "positive_only"
    chosen_BK = torch.zeros(3, 1) if positive else choose_candidates(scores_BN, batch, objective.config.candidates)
    rng = np.random.default_rng(1)
    logp_CA = torch.tensor(-rng.random((chosen_BK.numel(), 3 if positive else 2)))
    cells: Any = SimpleNamespace(target_lengths=[3, 3, 3])
    micro = Micro(batch, scores_BN, chosen_BK, cells, logp_CA)
    loss = sum(objective.values(micro, TOTALS).values(), torch.zeros(()))
    (gradient,) = torch.autograd.grad(loss, scores_BN)
    return loss.detach(), gradient


CASES: list[dict[str, Any]] = [
    {"objective": "infonce"},
    {"objective": "infonce", "contrastive_symmetric": True},
    {"objective": "positive_only"},
    {"objective": "rag_sequence", "candidates": "1", "contrastive_weight": 0.5},
    {"objective": "rag_sequence", "candidates": "1", "prior": "pool"},
    {"objective": "pdist", "candidates": "1", "prior": "pool"},
]


@pytest.mark.parametrize("flags", CASES, ids=lambda flags: " ".join(map(str, flags.values())))
@pytest.mark.parametrize("world", [1, 3])
def test_the_others_positive_is_not_pushed_down(flags: dict[str, Any], world: int) -> None:
    batch = batch_of(ROWS, world)
    assert batch.also_BN is not None and batch.also_BN.nonzero().tolist() == [[0, 1], [1, 0]]
    _, gradient = terms(flags, batch)
    assert gradient[0, 1] == gradient[1, 0] == 0
    assert gradient[0, 2] > 0 and gradient[1, 3] > 0, "other passages are"
    _, before = terms(flags, replace(batch, also_BN=None))
    assert before[0, 1] > 0 and before[1, 0] > 0, "without the mask it was"


def test_infonce_by_hand() -> None:
    x = scores().detach()
    wanted = sum(
        -(x[i, own] - torch.logsumexp(x[i, [own, *negatives]], 0))
        for i, own, negatives in ((0, 0, [2, 3]), (1, 1, [2, 3]), (2, 2, [0, 1, 3]))
    )
    assert terms({"objective": "infonce"}, batch_of(ROWS))[0] == pytest.approx(float(wanted) / 3)
    columns = sum(
        -(x[i, j] - torch.logsumexp(x[[i, *others], j], 0))
        for i, j, others in ((0, 0, [2]), (1, 1, [2]), (2, 2, [0, 1]))
    )
    both = terms({"objective": "infonce", "contrastive_symmetric": True}, batch_of(ROWS))[0]
    assert both == pytest.approx(float(wanted + columns) / 6)


def test_candidates_are_the_rows_own_then_the_others_positive_then_the_pool() -> None:
    batch = batch_of([replace(ROWS[0], others=(4,)), *ROWS[1:]])
    x = torch.tensor([[0.0, -9.0, -5.0, 9.0, 8.0]] * 3)  # columns: 0, 4, 1, 2, 3
    assert choose_candidates(x, batch, "3")[0].tolist() == [0, 1, 2]
    assert choose_candidates(x, replace(batch, also_BN=None), "3")[0].tolist() == [0, 1, 3]
    pool = RagSequence(build({"objective": "rag_sequence", "candidates": "3", "prior": "pool"}).objective)
    prior_BK = pool.candidates(Micro(batch, x, choose_candidates(x, batch, "3"), None, torch.zeros(9, 2))).prior_BK
    assert prior_BK is not None
    assert prior_BK[0].exp().sum() < 1 and prior_BK[0, 2] > -20, "what is read counts"


def test_without_equal_queries_nothing_changes() -> None:
    assert batch_of([ROWS[0], replace(ROWS[1], query="else"), ROWS[2]]).also_BN is None
    assert batch_of([ROWS[0], replace(ROWS[1], positives=(0,)), ROWS[2]]).also_BN is None


def test_labels_of_the_row_itself_hold() -> None:
    rows = with_also([replace(ROWS[0], others=(1,), negatives=(1,)), ROWS[1], ROWS[2]])
    assert [row.also for row in rows] == [(), (0,), ()]
    first = [Example("q", ("a",), (), (5, 6)), Example("q", ("a",), (), (7,))]
    assert [row.also for row in with_also([assume_first(row) for row in first])] == [(7,), (5,)]


def test_the_index_offers_no_positive_of_an_equal_query() -> None:
    found = np.array([[1, 0, 3, 2], [1, 0, 3, 2], [1, 0, 3, 2]])
    assert without_positives(found, with_also(ROWS), 2).tolist() == [[3, 2], [3, 2], [1, 0]]
