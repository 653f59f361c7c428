"""The helper of this folder, or a green test might have run nothing."""

from __future__ import annotations

import os
import time

import pytest
import torch
from ranks import run_ranks

from ds_rag.runtime import collectives


def total_of_ranks(base: float) -> tuple[int, float, torch.Tensor]:
    return (
        collectives.rank(),
        collectives.all_sum({"x": base + collectives.rank()})["x"],
        torch.full((2,), float(collectives.rank())),
    )


def fail_on_last() -> None:
    if collectives.rank() == collectives.world() - 1:
        raise ValueError("the words of the last rank")
    collectives.barrier()


def sleep() -> None:
    time.sleep(60)


def die() -> None:
    os._exit(3)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_results_come_in_rank_order(world: int) -> None:
    results = run_ranks(total_of_ranks, world, 10.0)
    assert [rank for rank, _, _ in results] == list(range(world))
    assert {total for _, total, _ in results} == {10.0 * world + sum(range(world))}
    assert all(torch.equal(tensor, torch.full((2,), float(rank))) for rank, _, tensor in results)


def test_a_failure_brings_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 failed.*fail_on_last.*the words of the last rank"):
        run_ranks(fail_on_last, 2)


def test_a_rank_that_hangs_or_dies_ends_the_call() -> None:
    with pytest.raises(TimeoutError, match="did not finish"):
        run_ranks(sleep, 2, timeout=2)
    with pytest.raises(RuntimeError, match="died"):
        run_ranks(die, 1)
