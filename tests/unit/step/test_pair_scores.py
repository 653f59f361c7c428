"""Scores of pairs against one plain forward for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import small_generator

from ds_rag.data.prompt import Prompt
from ds_rag.losses import Temper
from ds_rag.models.generator import Generator
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.step import pair_scores
from ds_rag.step.pair_scores import PairTexts, ranks_of, score_pairs

QUERIES = ["who leads zor ?", "where does kelp grow ?", "what is closed ?"]
ANSWERS = ["ann", "in the ninth pool", "the old mill"]
PASSAGES = ["ann leads zor", "kelp grows in pool nine", "the old mill is closed", "bob sleeps"]
PAIRS = [(0, 2), (2, 2), (1, 0), (0, 0), (2, 3), (1, 2), (0, 1)]


@pytest.fixture(scope="module")
def generator() -> Generator:
    return small_generator(seed=3)


@pytest.fixture(scope="module")
def prompt(generator) -> Prompt:
    return Prompt(generator.tokenizer, max_length=generator.max_length)


@pytest.fixture(scope="module")
def texts(prompt) -> PairTexts:
    return PairTexts(
        *(
            [np.array(ids, np.int32) for ids in prompt.encode(name, several, 40)]
            for name, several in (("query", QUERIES), ("answer", ANSWERS), ("passage", PASSAGES))
        )
    )


@pytest.fixture(scope="module")
def wanted(generator, prompt, texts) -> list[float]:
    """One sequence at a time, through the language model itself."""
    sums = []
    for q, p in PAIRS:
        context = prompt.context(texts.passages[p], texts.queries[q], len(texts.answers[q]))
        ids = torch.from_numpy(np.concatenate([context, texts.answers[q]]).astype(np.int64))
        with torch.no_grad():
            logp_TV = generator.lm(input_ids=ids[None]).logits[0].log_softmax(-1)
        sums.append(sum(float(logp_TV[t - 1, ids[t]]) for t in range(len(context), len(ids))))
    return sums


@pytest.mark.parametrize("block", [4096, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_one_plain_forward_for_each_pair(generator, prompt, texts, wanted, shared, block, monkeypatch):
    monkeypatch.setattr(pair_scores, "BLOCK", block)
    monkeypatch.setattr(pair_scores, "ENOUGH_TOKENS", {"cpu": 60})  # a few cells at once
    generator.shares_prefixes = False
    if shared:
        assert share_prefixes(generator) is None
    found = score_pairs(generator, prompt, texts, PAIRS)
    np.testing.assert_allclose(found.sums_P, wanted, rtol=1e-4)
    assert found.counts_P.tolist() == [len(texts.answers[q]) for q, _ in PAIRS]
    assert len({round(s, 3) for s in wanted}) == len(PAIRS)  # passages and questions do make a difference
    np.testing.assert_allclose(found.log_likelihoods("mean"), np.array(wanted) / found.counts_P, rtol=1e-4)
    assert (found.log_likelihoods("sum") == found.sums_P).all()
    tempered = [2 * total / count**0.5 for total, count in zip(found.sums_P, found.counts_P, strict=True)]
    np.testing.assert_allclose(found.log_likelihoods(Temper(0.5, 2.0)), tempered)


def test_shared_prefixes_read_each_passage_once(generator, prompt, texts):
    read: dict[bool, int] = {}
    for shared in (False, True):
        generator.shares_prefixes = False
        if shared:
            share_prefixes(generator)
        tokens: list[int] = []
        hook = generator.register_forward_pre_hook(lambda _, inputs, t=tokens: t.append(inputs[0].token_count))
        score_pairs(generator, prompt, texts, PAIRS)
        hook.remove()
        read[shared] = sum(tokens)
    assert read[True] < read[False]


def test_no_pair(generator, prompt, texts):
    found = score_pairs(generator, prompt, texts, [])
    assert found.sums_P.shape == found.counts_P.shape == (0,)


def test_pairs_of_a_passage_are_on_one_rank():
    pairs = [(q, p) for p, many in enumerate((7, 1, 3, 5, 2)) for q in range(many)]
    ranks = ranks_of(pairs, 3)
    assert all(
        len({int(r) for r, (_, p) in zip(ranks, pairs, strict=True) if p == passage}) == 1 for passage in range(5)
    )
    assert sorted(np.bincount(ranks).tolist()) == [5, 6, 7]
    assert not ranks_of(pairs, 1).any()
