from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from small import small_retriever

from ds_rag.data.almanac import make_world
from ds_rag.data.dataset import TokenTable, tokenize
from ds_rag.index import encode as module
from ds_rag.index.encode import cut, embed_rows, encode, in_text_order
from ds_rag.runtime.log import Console

TEXTS = [" ".join(p.text for p in make_world(0).corpus[n : n + 1 + n % 3]) for n in range(23)]  # of many lengths


@pytest.fixture(scope="module")
def retriever() -> Any:
    return small_retriever(max_passage_length=48)


def table(retriever: Any, texts: list[str] = TEXTS) -> TokenTable:
    return tokenize(lambda t: retriever.tokenize(t, "passage"), texts, Console(speaks=False), "texts")


@torch.no_grad()
def direct(retriever: Any, texts: list[str]) -> np.ndarray:
    """One text at a time, nothing padded."""
    from ds_rag.data.batch import pad_right

    rows = [pad_right([np.array(ids)], 0) for ids in retriever.tokenize(texts, "passage")]
    return np.concatenate([retriever.embed(row, "passage").numpy() for row in rows])


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_order_is_kept_and_padding_does_not_matter(retriever, batch):
    tokens = table(retriever)
    assert len(set(tokens.lengths.tolist())) > 5, "the case shows nothing"
    found = encode(retriever, tokens, "passage", batch)
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), 16)
    np.testing.assert_allclose(found, direct(retriever, TEXTS), atol=1e-5)


@pytest.mark.parametrize(("budget", "sizes"), [(1, [1] * 7), (20, [2, 2, 3]), (50, [5, 2]), (1000, [7])])
def test_batches_are_cut_by_tokens_and_hold_every_text_once(budget, sizes):
    lengths = [10, 10, 9, 8, 5, 1, 0]
    parts = list(cut(lengths, budget))
    assert [n for part in parts for n in range(part.start, part.stop)] == list(range(7))
    assert [part.stop - part.start for part in parts] == sizes
    assert list(cut([], budget)) == []


def forwards(retriever: Any, monkeypatch: pytest.MonkeyPatch, batch: int) -> list[tuple[int, int]]:
    """(texts, padded length) of every forward of `encode`."""
    shapes: list[tuple[int, int]] = []
    embed = retriever.embed
    monkeypatch.setattr(retriever, "embed", lambda t, side: shapes.append(tuple(t.ids_BT.shape)) or embed(t, side))
    encode(retriever, table(retriever), "passage", batch)
    return shapes


def test_a_batch_holds_no_more_tokens_than_that_many_of_the_longest(retriever, monkeypatch):
    shapes, longest = forwards(retriever, monkeypatch, 4), max(table(retriever).lengths)
    assert shapes[0] == (4, longest)
    assert all(texts * length <= 4 * longest for texts, length in shapes)
    assert max(texts for texts, _ in shapes) > 4, "short texts go in larger batches"


def test_on_a_cpu_a_batch_holds_no_more_than_its_threads_want(retriever, monkeypatch):
    monkeypatch.setattr(module, "CPU_TOKENS", 60)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    shapes = forwards(retriever, monkeypatch, 100)
    assert len(shapes) > 3 and all(texts * length <= 120 for texts, length in shapes)
    assert sum(texts for texts, _ in shapes) == len(TEXTS)


def test_every_rank_encodes_its_share_and_all_get_everything(retriever, monkeypatch):
    tokens, world = table(retriever), 3
    monkeypatch.setattr(module.collectives, "world", lambda: world)
    monkeypatch.setattr(module, "most_forwards", lambda retriever: int)
    shares: list[tuple[np.ndarray, np.ndarray]] = []
    monkeypatch.setattr(module.collectives, "gather_objects", lambda share: shares.append(share) or [share])
    for rank in range(world):
        monkeypatch.setattr(module.collectives, "rank", lambda rank=rank: rank)
        encode(retriever, tokens, "passage", 4)
    assert sorted(np.concatenate([order for order, _ in shares]).tolist()) == list(range(len(TEXTS)))
    work = [sum(tokens.lengths[order]) for order, _ in shares]
    assert max(work) - min(work) <= 2 * max(tokens.lengths)
    np.testing.assert_allclose(in_text_order(shares, len(TEXTS)), direct(retriever, TEXTS), atol=1e-5)


def test_a_rank_without_a_share(retriever, monkeypatch):
    """More ranks than texts: its part is empty, and of the right width."""
    monkeypatch.setattr(module.collectives, "world", lambda: 4)
    monkeypatch.setattr(module.collectives, "rank", lambda: 3)
    monkeypatch.setattr(module, "most_forwards", lambda retriever: int)
    seen: list[Any] = []
    full = (np.arange(2), np.ones((2, 16), np.float32))
    monkeypatch.setattr(module.collectives, "gather_objects", lambda share: seen.append(share) or [full, share])
    assert encode(retriever, table(retriever, TEXTS[:2]), "passage", 4).shape == (2, 16)
    assert seen[0][1].shape == (0, 16)


def test_a_rank_that_is_done_early_runs_forwards_of_one_token_to_the_last(retriever, monkeypatch):
    tokens = table(retriever)
    shapes: list[tuple[int, int]] = []
    embed = retriever.embed
    monkeypatch.setattr(retriever, "embed", lambda t, side: shapes.append(tuple(t.ids_BT.shape)) or embed(t, side))
    asked: list[int] = []
    rows = np.array([5, 1, 4])
    found = list(embed_rows(retriever, tokens, rows, "passage", 1, lambda count: asked.append(count) or 7))
    assert asked == [3] and len(found) == 3 and len(shapes) == 7
    assert shapes[3:] == [(1, 1)] * 4 and shapes[0] != (1, 1)
    none = list(embed_rows(retriever, tokens, rows[:0], "passage", 1, lambda count: 2))
    assert none == [] and shapes[7:] == [(1, 1)] * 2
    np.testing.assert_allclose(np.concatenate(found), direct(retriever, [TEXTS[n] for n in rows]), atol=1e-5)


def test_the_sides_differ_where_there_are_two_encoders():
    retriever = small_retriever()
    retriever.passage_encoder = small_retriever(seed=1).encoder
    tokens = table(retriever)
    queries, passages = (encode(retriever, tokens, side, 8) for side in ("query", "passage"))
    assert np.abs(queries - passages).max() > 0.1


def test_dropout_is_off_and_no_gradient_is_kept(retriever):
    retriever.train()
    tokens = table(retriever)
    encode(retriever, tokens, "passage", 8)
    assert not retriever.training
    assert all(p.grad is None for p in retriever.parameters())


def test_progress_counts_texts(retriever):
    stream = io.StringIO()
    console = Console(stream)
    made = []
    meter = console.progress

    def progress(*args: Any, **options: Any) -> Any:
        made.append(meter(*args, **options))
        return made[-1]

    console.progress = progress  # type: ignore[method-assign]
    encode(retriever, table(retriever), "passage", 5, console)
    assert (made[0].total, made[0].done) == (len(TEXTS), len(TEXTS))
