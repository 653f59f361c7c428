"""Decodings against brute force on a tiny random language model."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from small import SHAPE

from ds_rag.evaluation.decoding import DECODERS, Answer, Answerer, until_end
from ds_rag.models.generator import Generator
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.runtime.errors import UserError

VOCABULARY, PAD, END = 14, 0, 2
NEW = 5  # tokens at most


class Numbers:
    """A tokenizer whose texts are the ids themselves."""

    pad_token_id, eos_token_id = PAD, END

    def decode(self, ids: Any, skip_special_tokens: bool) -> str:
        return " ".join(str(i) for i in ids if not (skip_special_tokens and i in (PAD, END)))


class Joined:
    """A prompt that is 1, the passage, 3, the query; notes the room it was asked to leave."""

    def __init__(self) -> None:
        self.rooms: set[int] = set()

    def split(self, passage: np.ndarray, query: np.ndarray, answer_room: int) -> tuple[np.ndarray, np.ndarray]:
        self.rooms.add(answer_room)
        return np.concatenate([[1], passage]).astype(np.int32), np.concatenate([[3], query]).astype(np.int32)

    def context(self, passage: np.ndarray, query: np.ndarray, answer_room: int) -> np.ndarray:
        return np.concatenate(self.split(passage, query, answer_room))


@pytest.fixture(scope="module")
def generator() -> Generator:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    shape = SHAPE | {"initializer_range": 0.6}
    lm = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape, eos_token_id=END, pad_token_id=PAD)).eval()
    return Generator(lm, Numbers())


def make(generator: Generator, decode: str = "rag_sequence", batch: int = 3) -> Answerer:
    return Answerer(generator, Joined(), decode, NEW, batch)


def questions(seed: int = 0, count: int = 7) -> tuple[list[np.ndarray], list[list[np.ndarray]], list[np.ndarray]]:
    """Queries, 1 to 4 passages of 0 to 6 tokens for each, and log priors."""
    rng = np.random.default_rng(seed)

    def text(low: int) -> np.ndarray:
        return rng.integers(4, VOCABULARY, rng.integers(low, 7)).astype(np.int32)

    passages = [[text(0) for _ in range(1 + n % 4)] for n in range(count)]
    priors = [np.log(rng.dirichlet(np.ones(len(row)))) for row in passages]
    return [text(1) for _ in range(count)], passages, priors


@torch.no_grad()
def next_logp(generator: Generator, ids: list[int]) -> torch.Tensor:
    return generator.lm(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)


def greedy(generator: Generator, context: np.ndarray) -> list[int]:
    ids: list[int] = []
    while len(ids) < NEW and END not in ids:
        ids.append(int(next_logp(generator, [*context.tolist(), *ids]).argmax()))
    return ids


def sequence_logp(generator: Generator, context: np.ndarray, ids: list[int]) -> float:
    return sum(float(next_logp(generator, [*context.tolist(), *ids[:n]])[t]) for n, t in enumerate(ids))


def thorough(generator: Generator, query: np.ndarray, passages: list[np.ndarray], prior: np.ndarray) -> Answer:
    contexts = [Joined().context(p, query, 0) for p in passages]
    best = Answer("", -np.inf)
    for candidate in [greedy(generator, c) for c in contexts]:
        parts = [float(z) + sequence_logp(generator, c, candidate) for z, c in zip(prior, contexts, strict=True)]
        score = float(np.log(np.exp(parts).sum()))
        if score > best.logprob:
            best = Answer(Numbers().decode(candidate, True), score, END in candidate)
    return best


def test_rag_sequence_rescores_every_answer_under_every_passage(generator):
    queries, passages, priors = questions()
    found = make(generator).answer(queries, passages, priors)
    expected = [thorough(generator, *row) for row in zip(queries, passages, priors, strict=True)]
    assert [a.text for a in found] == [a.text for a in expected]
    assert [a.ended for a in found] == [a.ended for a in expected]
    assert [a.logprob for a in found] == pytest.approx([a.logprob for a in expected], abs=1e-4)


def test_top1_is_the_greedy_answer_from_the_first_passage(generator):
    queries, passages, priors = questions()
    found = make(generator, "top1").answer(queries, passages, priors)
    for answer, query, row in zip(found, queries, passages, strict=True):
        context = Joined().context(row[0], query, 0)
        expected = greedy(generator, context)
        assert answer.text == Numbers().decode(expected, True)
        assert answer.ended == (END in expected)
        assert answer.logprob == pytest.approx(sequence_logp(generator, context, expected), abs=1e-4)


def test_the_two_decodings_differ_and_the_prior_decides(generator):
    """Else neither test above could tell them apart."""
    queries, passages, priors = questions()
    one, all_ = (make(generator, d).answer(queries, passages, priors) for d in ("top1", "rag_sequence"))
    assert [a.text for a in one] != [a.text for a in all_]
    turned = make(generator).answer(queries, passages, [p[::-1] for p in priors])
    assert [a.text for a in turned] != [a.text for a in all_]


@pytest.mark.parametrize("decode", DECODERS)
def test_answers_do_not_depend_on_the_batch(generator, decode):
    queries, passages, priors = questions(1)
    runs = [make(generator, decode, batch).answer(queries, passages, priors) for batch in (1, 2, 100)]
    rows = zip(queries, passages, priors, strict=True)
    alone = [make(generator, decode).answer([query], [row], [prior])[0] for query, row, prior in rows]
    for run in runs:
        assert [a.text for a in run] == [a.text for a in alone]
        assert [a.logprob for a in run] == pytest.approx([a.logprob for a in alone], abs=1e-4)


@pytest.fixture
def sharing(generator: Generator) -> Generator:
    """The same weights; passages are read once for all that stands on them."""
    shared = Generator(deepcopy(generator.lm), generator.tokenizer)
    assert share_prefixes(shared) is None
    return shared


@pytest.mark.parametrize("layout", ["plain", "shared"])
def test_a_given_text_is_scored_under_each_passage(generator, sharing, layout):
    queries, passages, _ = questions(4)
    passages[1] = [passages[0][0], *passages[1]]  # passages that questions have in common, apart in the lists
    passages[5][1] = passages[0][0]
    targets = [np.array([5 + n, 2 + n % 3, END], dtype=np.int32)[n % 2 :] for n in range(len(queries))]
    found = make(sharing if layout == "shared" else generator).score(queries, passages, targets)
    for logp_K, query, row, target in zip(found, queries, passages, targets, strict=True):
        wanted = [sequence_logp(generator, Joined().context(p, query, 0), target.tolist()) for p in row]
        assert logp_K == pytest.approx(wanted, abs=1e-4)


def test_a_passage_that_questions_share_is_read_once(sharing, monkeypatch):
    """Three questions on the same two passages, in one forward: two prefixes, six cells; the answers are the same."""
    queries, passages, _ = questions(5)
    rows = [passages[3][:2] if n % 2 else passages[3][1::-1] for n in range(3)]
    laid_out = []
    lay_out = sharing.lay_out
    monkeypatch.setattr(sharing, "lay_out", lambda cells, pad: laid_out.append(cells) or lay_out(cells, pad))
    make(sharing, batch=6).score(queries[:3], rows, [np.array([5, END], dtype=np.int32)] * 3)
    assert [(len(cells.prefixes), len(cells)) for cells in laid_out] == [(2, 6)]


def test_sharing_passages_changes_no_answer(generator, sharing):
    found, wanted = (make(g).answer(*questions(6)) for g in (sharing, generator))
    assert [a.text for a in found] == [a.text for a in wanted]
    assert [a.logprob for a in found] == pytest.approx([a.logprob for a in wanted], abs=1e-4)


def test_greedy_stops_at_the_end_token_or_the_limit(generator):
    queries, passages, _ = questions(2, 30)
    split = [Joined().split(p[0], q, 0) for q, p in zip(queries, passages, strict=True)]
    found = make(generator, batch=8).greedy(split)
    assert [ids.tolist() for ids in found] == [greedy(generator, np.concatenate(c)) for c in split]
    ended = [ids for ids in found if ids[-1] == END]
    assert ended and len(ended) < len(found), "the case shows nothing"
    assert all(len(ids) == NEW for ids in found if ids[-1] != END)
    assert min(len(ids) for ids in ended) < NEW


def test_the_prompt_leaves_room_for_the_longest_answer_and_its_end(generator):
    answerer = make(generator)
    answerer.answer(*questions())
    assert answerer.prompt.rooms == {NEW + 1}


def test_until_end():
    assert until_end(np.array([5, 2, 0, 2]), 2).tolist() == [5, 2]
    assert until_end(np.array([2, 5]), 2).tolist() == [2]
    assert until_end(np.array([5, 6]), 2).tolist() == [5, 6]
    assert until_end(np.array([5, 2]), None).tolist() == [5, 2]


def test_no_questions_no_answers(generator):
    for decode in DECODERS:
        assert make(generator, decode).answer([], [], []) == []


def test_an_unknown_decoding_is_named(generator):
    with pytest.raises(UserError, match="did you mean 'top1'"):
        make(generator, "top_1")
