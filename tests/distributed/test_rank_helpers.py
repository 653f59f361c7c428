"""ds_rag.runtime.collectives on one and two ranks.

Shape legend: N passages of a rank, D embedding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pair import gather_with_grad
from ranks import run_ranks

from ds_rag.run import export
from ds_rag.runtime import collectives
from ds_rag.runtime.errors import UserError


def local_passages(rank: int) -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def local_loss(rank: int, pool_ND: torch.Tensor) -> torch.Tensor:
    """Another function of the whole pool on every rank."""
    random = torch.Generator().manual_seed(50 + rank)
    weights = torch.randn(pool_ND.shape, generator=random, dtype=torch.float64)
    return (weights * pool_ND.sin()).sum() + pool_ND[rank].prod()


def gather() -> tuple[torch.Tensor, torch.Tensor]:
    """What every rank gathers, and the gradient of its own passages."""
    local_ND = local_passages(collectives.rank()).requires_grad_()
    pool_ND = gather_with_grad(local_ND)
    local_loss(collectives.rank(), pool_ND).backward()
    assert local_ND.grad is not None
    return pool_ND.detach(), local_ND.grad


def small_things() -> dict[str, Any]:
    rank = collectives.rank()
    return {
        "rank": rank,
        "world": collectives.world(),
        "sum": collectives.all_sum({"a": 1.5 + rank, "b": 1e-9, "c": 2.0**53 - 1 if rank == 0 else 1.0}),
        "objects": collectives.gather_objects({"rank": rank, "texts": ["x"] * rank}),
        "first": collectives.from_first(f"from {rank}"),
    }


@pytest.mark.parametrize("world", [1, 2, 3])
def test_gather_has_the_rows_of_all_ranks_and_sums_their_gradients(world: int) -> None:
    locals_ND = [local_passages(rank).requires_grad_() for rank in range(world)]
    pool_ND = torch.cat(locals_ND)
    torch.stack([local_loss(rank, pool_ND) for rank in range(world)]).sum().backward()
    for rank, (found_ND, grad_ND) in enumerate(run_ranks(gather, world)):
        assert torch.equal(found_ND, pool_ND.detach())
        torch.testing.assert_close(grad_ND, locals_ND[rank].grad, rtol=1e-12, atol=1e-12)


def test_gather_of_one_rank_alone_would_differ() -> None:
    """The gradient that a rank's own loss sends: what a backward without the sum over ranks would give."""
    locals_ND = [local_passages(rank).requires_grad_() for rank in range(2)]
    local_loss(0, torch.cat(locals_ND)).backward()
    (_, grad_ND), _ = run_ranks(gather, 2)
    assert (grad_ND - locals_ND[0].grad).abs().max() > 0.1


@pytest.mark.parametrize("world", [1, 2])
def test_small_things(world: int) -> None:
    for rank, found in enumerate(run_ranks(small_things, world)):
        assert (found["rank"], found["world"]) == (rank, world)
        exact = 2**53 - 1 if world == 1 else 2**53  # in float32 it would be another number
        assert found["sum"] == {"a": 1.5 * world + sum(range(world)), "b": 1e-9 * world, "c": exact}
        assert found["objects"] == [{"rank": r, "texts": ["x"] * r} for r in range(world)]
        assert found["first"] == "from 0"


def met_by_first() -> tuple[str, str]:
    """What rank 0 meets, and what is raised here of it."""

    def work() -> None:
        assert collectives.rank() == 0, "the others only hear of it"
        raise UserError("damaged", found="a byte", fix="another")

    try:
        export.by_first(work)
    except UserError as error:
        export.by_first(lambda: None)
        return str(error), str(error.found)
    return "", ""


@pytest.mark.parametrize("world", [1, 2])
def test_what_the_first_rank_meets_every_rank_raises(world: int) -> None:
    found = run_ranks(met_by_first, world)
    assert found == [(str(UserError("damaged", found="a byte", fix="another")), "a byte")] * world


ROWS = {1: [[2, 0, 1]], 2: [[3, 0], [1, 2, 4]], 3: [[1, 2], [], [0]]}  # that each rank holds, by world


def uneven(world: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    rows = ROWS[world][collectives.rank()]
    local = torch.tensor([[float(r), 10.0 * r] for r in rows] or [[-1.0, -1.0]])  # the row of an empty share is none
    sums = collectives.add_over_ranks(torch.full((2,), float(collectives.rank() + 1)))
    return (
        collectives.gather_rows(local, ROWS[world]),
        sums,
        collectives.all_max({"a": -float(collectives.rank()), "b": collectives.rank()}, "cpu"),
    )


@pytest.mark.parametrize("world", [1, 2, 3])
def test_uneven_shares_are_put_in_order(world: int) -> None:
    count = sum(len(r) for r in ROWS[world])
    for whole, sums, top in run_ranks(uneven, world, world):
        assert whole.tolist() == [[float(r), 10.0 * r] for r in range(count)]
        assert sums.tolist() == [world * (world + 1) / 2] * 2
        assert top == {"a": 0.0, "b": world - 1.0}
