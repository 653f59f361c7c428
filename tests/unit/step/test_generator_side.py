"""How the generator's part of a step is cut up, what is chosen and said, and what is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small import gradients, small_parts

from ds_rag.config import ScoringConfig
from ds_rag.data.batch import CellList, Share, list_cells
from ds_rag.run.assemble import Parts
from ds_rag.step import generator_side
from ds_rag.step.activation_memory import CellCost
from ds_rag.step.cell_chunks import split_cells, stand_in
from ds_rag.step.cell_selection import draw_one
from ds_rag.step.generator_side import ScoredCells, Scoring, StepOptions, remove_dropout


def cells_of(prefixes: list[int], suffix: int = 3) -> CellList:
    """A cell for each number; equal numbers share a prefix of that many tokens."""
    return list_cells(
        [np.full(n, n, np.int32) for n in prefixes], [np.ones(suffix, np.int32)] * len(prefixes), [1] * len(prefixes)
    )


def test_chunks_keep_a_prefix_together_and_hold_no_more_than_they_may():
    cells = cells_of([5, 9, 5, 2, 9, 5, 9])
    assert split_cells(cells, range(7), 100, 1000, shared=True) == [[1, 4, 6, 0, 2, 5, 3]]
    assert split_cells(cells, range(7), 2, 1000, shared=True) == [[1, 4], [6, 0], [2, 5], [3]]
    assert split_cells(cells, range(7), 100, 9 + 3 * 3, shared=True) == [[1, 4, 6], [0, 2, 5], [3]]
    undivided = split_cells(cells, range(7), 100, 18 + 5 + 3, shared=True)
    assert undivided == [[1, 4, 6], [0, 2, 5, 3]], "one of the three would fit, but they would be read in two chunks"
    assert split_cells(cells, [2, 3], 100, 1000, shared=True) == [[2, 3]]
    assert split_cells(cells, range(7), 100, 1, shared=True) == [[c] for c in (1, 4, 6, 0, 2, 5, 3)]
    assert split_cells(cells, [], 1, 1, shared=True) == []


def test_without_sharing_every_cell_counts_its_whole_sequence():
    cells = cells_of([5, 5, 5, 5])
    assert split_cells(cells, range(4), 100, 16, shared=False) == [[0, 1], [2, 3]]
    assert split_cells(cells, range(4), 100, 16, shared=True) == [[0, 1, 2], [3]]


def run_step(parts: Parts, weights: torch.Tensor | None = None) -> dict[str, Any]:
    """One micro-batch with a gradient of `weights` (C, A), all different by default."""
    parts.engines.train()
    batch = parts.loader.micro_batches(0)[0]
    candidates_BK = torch.arange(4).expand(len(batch.rows), 4)
    cells = parts.objective.cells(batch, candidates_BK, parts.prompt)
    scored = parts.joint.scoring.forward(cells, batch, True)
    report = scored.backward(weighed(scored, cells, weights), (0, 0))
    return {"logp": scored.outputs, "report": report, "gradients": gradients(parts), "scored": scored}


def weighed(scored: ScoredCells, cells: CellList, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Minus the weights at real tokens, all different by default."""
    if weights is None:
        weights = torch.linspace(0.5, 1.5, scored.outputs.numel()).view_as(scored.outputs)
    real = torch.arange(scored.outputs.shape[1]) < torch.tensor(cells.target_lengths)[:, None]
    return -torch.where(real, weights, 0.0)


def said(budget: float | None, how: str = "auto", **flags: Any) -> tuple[dict[str, Any], list[str]]:
    lines: list[str] = []
    parts = small_parts(generator_backward=how, memory_budget=budget, **flags)
    parts.joint.scoring.options.say = lines.append
    return run_step(parts), lines


def test_auto_takes_one_pass_where_it_fits_and_says_so():
    roomy, lines = said(4.0)
    assert len(roomy["scored"].chunks) == 1 and len(lines) == 1
    assert lines[0].startswith("generator  one pass:") and "of 12 cells need about" in lines[0]
    assert "the budget is 4 GB" in lines[0]
    tight, lines = said(1e-3)
    assert len(tight["scored"].chunks) > 1 and lines[0].startswith("generator  two passes:")
    for name, wanted in roomy["gradients"].items():
        torch.testing.assert_close(tight["gradients"][name], wanted, rtol=1e-4, atol=1e-5)


def test_exact_says_what_chunk_it_predicts():
    _, lines = said(None, how="exact")
    assert len(lines) == 1 and "chunks of up to 2,048 tokens need about" in lines[0]


def test_chunk_size_follows_the_budget():
    cost = CellCost(1000.0, 500.0, 512, 4, 0, shared=True)
    sizes = [cost.tokens_within(budget, 0.1) for budget in (1e6, 1e7, 1e8)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2] / 50
    for budget, tokens in zip((1e6, 1e7, 1e8), sizes, strict=True):
        assert cost.of(tokens, int(tokens * 0.1) + 1) <= budget < cost.of(tokens + 1, int((tokens + 1) * 0.1) + 1)
    assert cost.tokens_within(0.0, 0.1) == 1


def test_posterior_skips_light_cells_and_reports_their_mass():
    parts = small_parts(generator_backward="posterior", posterior_threshold=0.05, micro_cells="2")
    weights = torch.zeros(12, 99)[:, : run_step(small_parts())["logp"].shape[1]]
    weights[:] = 0.01
    weights[[1, 4, 11]] = 0.97
    found = run_step(parts, weights)
    assert found["report"]["kept_cells"] == pytest.approx(0.25)
    assert found["report"]["dropped_mass"] == pytest.approx(0.03, abs=1e-6)
    assert sorted(c for chunk in found["scored"].chunks for c in chunk) == [1, 4, 11]
    weights[[c for c in range(12) if c not in (1, 4, 11)]] = 0.0
    only = run_step(small_parts(), weights)
    for name, wanted in only["gradients"].items():
        torch.testing.assert_close(found["gradients"][name], wanted, rtol=1e-4, atol=1e-6)


def test_posterior_with_no_threshold_is_exact():
    exact = run_step(small_parts(generator_backward="exact", micro_cells="5"))
    found = run_step(small_parts(generator_backward="posterior", posterior_threshold=0.0))
    assert found["report"] == {"dropped_mass": pytest.approx(0.0), "kept_cells": 1.0}
    for name, wanted in exact["gradients"].items():
        torch.testing.assert_close(found["gradients"][name], wanted, rtol=1e-4, atol=1e-5)


def test_sample_averages_to_the_exact_gradient():
    """Over draws, on the model's own gradient."""
    exact = run_step(small_parts(generator_backward="exact", micro_cells="5"))["gradients"]
    parts = small_parts(generator_backward="sample")
    parts.engines.train()
    batch = parts.loader.micro_batches(0)[0]
    cells = parts.objective.cells(batch, torch.arange(4).expand(3, 4), parts.prompt)
    draws = []
    wanted = torch.cat([g.flatten() for n, g in exact.items() if n.startswith("generator")])
    for n in range(300):
        parts.generator.zero_grad()
        scored = parts.joint.scoring.forward(cells, batch, True)
        report = scored.backward(weighed(scored, cells), (0, n))
        assert report == {"kept_cells": 0.25}
        found = gradients(parts)
        draws.append(torch.cat([g.flatten() for name, g in found.items() if name.startswith("generator")]))
    stacked = torch.stack(draws)
    spread = float((stacked - wanted).norm(dim=1).mean() / wanted.norm())
    assert spread > 0.2, "a draw alone is far off"
    assert float((stacked.mean(0) - wanted).norm() / wanted.norm()) < 2 * spread / 300**0.5


def test_a_generator_that_does_not_learn_is_scored_without_a_graph():
    parts = small_parts(freeze="generator", objective="rag_sequence")
    found = run_step(parts)
    assert found["report"] == {} and all(g.norm() == 0 for n, g in found["gradients"].items() if "generator" in n)
    torch.testing.assert_close(found["logp"], run_step(small_parts())["logp"])


def test_a_rank_without_work_reads_a_stand_in():
    parts = small_parts(generator_backward="exact", micro_cells="5")
    scoring = parts.joint.scoring
    (layout,) = scoring.lay_out(stand_in(), [])
    assert layout.token_count == 1 and scoring.generator(layout).shape == (1, 1)
    assert run_step(parts)["scored"].chunk_gradient(torch.ones(3, 4), []).tolist() == [[0.0]]


def test_tokens_are_counted_once_a_pass():
    counts = []
    for how in ("one_pass", "exact"):
        parts = small_parts(generator_backward=how, micro_cells="1000")
        counts.append(run_step(parts)["scored"].tokens)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "phi3"])
def test_thinned_ways_train_without_dropout(kind):
    """Of every kind there is: modules, and numbers that the attention reads."""
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    if kind == "opt":
        sizes |= {"ffn_dim": 16, "word_embed_proj_dim": 16}
    drops = {
        "gpt2": {"resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5, "n_embd": 16, "n_head": 2},
        "llama": {"attention_dropout": 0.5},
        "opt": {"dropout": 0.5, "attention_dropout": 0.5},
        "phi3": {"resid_pdrop": 0.5, "attention_dropout": 0.5, "embd_pdrop": 0.5},
    }[kind]
    config = transformers.AutoConfig.for_model(kind, vocab_size=64, pad_token_id=0, **sizes | drops)
    lm = transformers.AutoModelForCausalLM.from_config(config).train()
    ids = torch.arange(20)[None]
    assert not torch.equal(lm(ids).logits, lm(ids).logits)
    assert remove_dropout(lm) and not remove_dropout(lm)
    assert torch.equal(lm(ids).logits, lm(ids).logits)


def test_the_note_on_dropout_is_given_where_there_is_some():
    for dropout, wanted in ((0.3, 1), (0.0, 0)):
        lines: list[str] = []
        parts = small_parts(dropout=dropout, generator_backward="one_pass")
        options = StepOptions(ScoringConfig(generator_backward="sample"), say=lines.append)
        Scoring(parts.engines, parts.generator, 0, options)
        assert len(lines) == wanted


def test_ranks_steps_and_micro_batches_draw_apart_and_ranks_of_one_batch_alike(monkeypatch):
    """`sample` on all ranks with the same draws would estimate the gradient from fewer."""
    seeds = []
    monkeypatch.setattr(generator_side, "draw_one", lambda *args: seeds.append(tuple(args[3])) or draw_one(*args))

    def drawn(rank: int, place: tuple[int, int], shared: bool = False) -> tuple[int, ...]:
        parts = small_parts(generator_backward="sample")
        batch = parts.loader.micro_batches(0)[0]
        candidates_BK = torch.arange(3).expand(3, 3)
        cells = parts.objective.cells(batch, candidates_BK, parts.prompt)
        scored = parts.joint.scoring.forward(cells, batch, True)
        if shared:
            whole = list(range(len(batch.passage_ids)))
            batch.shares = [Share([0, 1, 2], whole), Share([], whole)]
        with monkeypatch.context() as patch:
            patch.setattr(generator_side.collectives, "rank", lambda: rank)
            scored.backward(scored.outputs.exp(), place)
        return seeds[-1]

    apart = [drawn(0, (0, 0)), drawn(1, (0, 0)), drawn(2, (0, 0)), drawn(0, (1, 0)), drawn(0, (0, 1)), drawn(1, (1, 0))]
    assert len(set(apart)) == len(apart)
    assert drawn(0, (0, 0)) == apart[0]
    assert drawn(0, (2, 0), shared=True) == drawn(1, (2, 0), shared=True)


def test_a_handle_has_one_backward_and_the_scoring_keeps_nothing_of_a_micro_batch():
    parts = small_parts()
    batch = parts.loader.micro_batches(0)[0]
    cells = parts.objective.cells(batch, torch.arange(3).expand(3, 3), parts.prompt)
    before = set(vars(parts.joint.scoring))
    first, second = (parts.joint.scoring.forward(cells, batch, True) for _ in range(2))
    assert set(vars(parts.joint.scoring)) - before <= {"free"}
    for scored in (first, second):  # in any order: no state waits between
        scored.backward(weighed(scored, cells))
    with pytest.raises(AssertionError, match="one backward"):
        first.backward(weighed(first, cells))
