"""Stored scores on two ranks: the loss and gradients of a step without a store, each cell read by one rank only."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))  # for small.py, on the ranks too

POOLS = ("rank", "world")


def steps(root: str | None) -> dict[str, tuple[float, dict[str, torch.Tensor], int, int]]:
    """Pool -> (loss over ranks, gradients of this rank, tokens that its generator read in the step, pairs scored
    ahead). root: the store's folder; None: without one."""
    from small import gradients, small_parts

    from ds_rag.run.teacher import flush_scores, pairs_ahead, reader_of
    from ds_rag.runtime import collectives
    from ds_rag.step.cached_scoring import CachedScoring, score_missing

    found = {}
    for pool in POOLS:
        parts = small_parts(pool=pool, freeze="generator", teacher_cache=root and f"{root}/{pool}")
        ahead, scoring = 0, parts.joint.scoring
        if isinstance(scoring, CachedScoring):
            ahead = score_missing(reader_of(parts), pairs_ahead(parts, 0, 1000), scoring.store)
            scoring.store.verified = True  # else a few cells are read again
        assert parts.generator is not None
        tokens: list[int] = []
        parts.generator.register_forward_pre_hook(lambda _, inputs, t=tokens: t.append(inputs[0].token_count))
        parts.engines.step = lambda *args, **options: None  # type: ignore[assignment, method-assign]
        report = parts.joint.step(parts.loader.micro_batches(0))
        flush_scores(parts)
        loss = collectives.all_sum({"loss": report.loss})["loss"]
        found[pool] = loss, gradients(parts), sum(tokens), ahead
    return found


@pytest.fixture(scope="module")
def plain() -> list[Any]:
    return run_ranks(steps, 2, None)


def test_two_ranks_with_stored_scores_step_as_without(plain, tmp_path):
    first, second = run_ranks(steps, 2, str(tmp_path)), run_ranks(steps, 2, str(tmp_path))
    for pool in POOLS:
        assert first[0][pool][3] == first[1][pool][3] > 0, "both ranks know how many pairs were scored"
        assert second[0][pool][3] == second[1][pool][3] == 0, "and find them all on the disk"
        whole, part, none = (sum(of_rank[pool][2] for of_rank in found) for found in (plain, first, second))
        assert 0 < part < whole / 2, "only passages of other rows, which nobody could know ahead"
        assert none == 0, "every rank has what the other one scored"
        for rank in range(2):
            for found in (first[rank][pool], second[rank][pool]):
                assert found[0] == pytest.approx(plain[rank][pool][0], abs=1e-5)
                for name, gradient in plain[rank][pool][1].items():
                    torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-5)
    assert plain[0]["rank"][0] != pytest.approx(plain[0]["world"][0], abs=1e-3), "the pools are different problems"
