"""One pass and two: the same gradient, dropout replayed, random states as they were."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from small import gradients, small_parts

from ds_rag.data.batch import Batch, Tokens
from ds_rag.run.assemble import Parts
from ds_rag.step.retriever_side import Embedding, split_evenly
from ds_rag.step.two_pass import TwoPass


def embed(parts: Parts, chunk: int, seed: int = 5) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Leaves of one micro-batch, and the gradients of a function in which every number counts differently."""
    parts.engines.train()
    torch.manual_seed(seed)
    embedding = Embedding(parts.engines, chunk)
    embedded = embedding.forward(parts.loader.micro_batches(0)[0], last=True)
    embedded.backward(torch.autograd.grad(value(embedded.outputs), embedded.outputs))
    return embedded.outputs, gradients(parts)


def value(leaves: list[torch.Tensor]) -> torch.Tensor:
    q_BD, p_ND, temperature = leaves
    scores_BN = (q_BD @ p_ND.T / temperature).tanh()
    return (scores_BN * torch.linspace(0.5, 1.5, scores_BN.numel()).view_as(scores_BN)).sum()


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_chunks_of_the_retriever_change_nothing(chunk):
    (whole, wanted), (found, got) = (embed(small_parts(learn_temperature=True), c) for c in (0, chunk))
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-5)
    assert abs(float(got["retriever.log_temperature"])) > 1e-3


def test_a_chunk_without_a_query_reads_one_in_vain():
    """More chunks than queries: the gradient of what is read in vain is zero."""
    (_, wanted), (_, got) = (embed(small_parts(batch=2), c) for c in (0, 1))
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-5)


def by_hand(parts: Parts, chunk: int, seed: int) -> dict[str, torch.Tensor]:
    """The chunks' forwards in one graph, from the same random state."""
    parts.engines.train()
    torch.manual_seed(seed)
    batch = parts.loader.micro_batches(0)[0]
    slices = split_evenly((batch.queries, batch.passages), chunk)
    outputs = [parts.retriever(batch.queries.take(q.read), batch.passages.take(p.read)) for q, p in slices]
    sides: list[Any] = [torch.empty(len(batch.queries.ids_BT), 16), torch.empty(len(batch.passages.ids_BT), 16)]
    for side in (0, 1):
        rows = torch.tensor([r for pair in slices for r in pair[side].rows])
        kept = [o[side][: len(pair[side].rows)] for o, pair in zip(outputs, slices, strict=True)]
        sides[side] = torch.zeros_like(sides[side]).index_copy(0, rows, torch.cat(kept))
    value([*sides, outputs[0][2]]).backward()
    return gradients(parts)


def test_dropout_is_replayed():
    """The gradient is that of one function; without the replay it would be that of none."""
    wanted = by_hand(small_parts(dropout=0.3), 3, 5)
    _, found = embed(small_parts(dropout=0.3), 3, 5)
    apart = {n: float((found[n] - wanted[n]).norm()) for n in wanted}
    assert max(apart.values()) < 1e-4
    _, other = embed(small_parts(dropout=0.3), 3, 6)
    assert max(float((other[n] - wanted[n]).norm()) for n in wanted) > 0.05


@pytest.mark.parametrize("way", ["one_pass", "exact"])
def test_dropout_of_the_generator_too(way):
    """Two passes over one chunk are one pass, mask for mask."""
    found = []
    for how in ("one_pass", way):
        parts = small_parts(dropout=0.4, generator_backward=how, micro_cells="1000")
        parts.engines.train()
        torch.manual_seed(3)
        batch = parts.loader.micro_batches(0)[0]
        candidates_BK = torch.arange(3).expand(3, 3)
        cells = parts.objective.cells(batch, candidates_BK, parts.prompt)
        scored = parts.joint.scoring.forward(cells, batch, True)
        scored.backward(torch.linspace(0.5, 1.5, scored.outputs.numel()).view_as(scored.outputs))
        found.append((scored.outputs, gradients(parts)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=0)  # without a graph a kernel rounds otherwise
    for name in found[0][1]:
        torch.testing.assert_close(found[0][1][name], found[1][1][name], rtol=1e-5, atol=1e-6)


def both(batch: Batch) -> tuple[Tokens, Tokens]:
    return batch.queries, batch.passages


def test_the_random_stream_goes_on_as_if_each_chunk_had_run_once():
    draws = []
    for backward in (False, True):
        parts = small_parts(dropout=0.3)
        parts.engines.train()
        torch.manual_seed(4)
        batch = parts.loader.micro_batches(0)[0]
        inputs = [partial(both, batch)] * 2
        run = TwoPass(parts.engines, "retriever", inputs, last=True)
        if backward:
            run.backward(lambda c, run=run: [torch.ones_like(x) for x in run.outputs[c]])
        draws.append(torch.rand(3))
    torch.testing.assert_close(draws[0], draws[1], rtol=0, atol=0)


def test_only_the_last_chunk_of_the_last_micro_batch_ends_the_step():
    for last in (True, False):
        parts = small_parts()
        batch = parts.loader.micro_batches(0)[0]
        run = TwoPass(parts.engines, "retriever", [partial(both, batch)] * 3, last)
        run.backward(lambda c, run=run: [torch.ones_like(x) for x in run.outputs[c]])
        assert parts.engines.retriever.boundaries == [False, False, last]


def test_chunks_hold_texts_of_like_length_and_every_text_once():
    lengths = [3, 9, 4, 8, 2, 7]
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    sides = split_evenly((Tokens(mask, mask), Tokens(mask[:3], mask[:3])), 3)
    assert len(sides) == 3
    for n, count in ((0, 6), (1, 3)):
        assert sorted(r for pair in sides for r in pair[n].rows) == list(range(count))
    assert [[lengths[r] for r in pair[0].rows] for pair in sides] == [[2, 3], [4, 7], [8, 9]]


def test_what_is_drawn_between_the_passes_is_not_drawn_again():
    """Between the retriever's forward and its backward the generator has drawn: the stream goes on from there."""
    parts = small_parts(dropout=0.3)
    parts.engines.train()
    torch.manual_seed(4)
    batch = parts.loader.micro_batches(0)[0]
    run = TwoPass(parts.engines, "retriever", [partial(both, batch)] * 2, last=True)
    between = torch.rand(3)
    state = torch.get_rng_state()
    run.backward(lambda c: [torch.ones_like(x) for x in run.outputs[c]])
    assert torch.equal(torch.get_rng_state(), state), "as before the backward"
    assert not torch.equal(torch.rand(3), between)
