"""One optimizer step against a reference that shares nothing with the product but the models' layers.

Prompt, tokens, pooling, scores, candidates, losses and the mean over the step are written out below in plain PyTorch,
in one graph over both models; only which rows make up which micro-batch is asked of the run. Both marginal objectives;
ZeRO stages 0 to 2; one rank and two, with accumulation; one pass, and chunks of both models; a learned temperature.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks
from real_step import ROWS, Found, Run, train_real
from small import small_generator, small_parts, small_retriever
from torch.nn import functional as F

from ds_rag.data.almanac import make_world

CHUNKS: dict[str, Any] = {"generator_backward": "exact", "micro_cells": "4", "retriever_chunk": 3}
ONE_PASS: dict[str, Any] = {"generator_backward": "one_pass", "candidates": "4"}
RUNS: dict[str, Run] = {
    "rag_sequence one pass": Run((0, 0), flags=ONE_PASS),
    "rag_sequence chunks x2": Run((1, 1), accumulation=2, flags=CHUNKS | {"candidates": "4"}),
    "rag_token one pass x2": Run((2, 2), accumulation=2, flags=ONE_PASS | {"objective": "rag_token"}),
    "rag_token chunks all": Run((1, 2), flags=CHUNKS | {"objective": "rag_token"}),
}


def texts_of_rows(count: int = 12) -> list[tuple[str, str, list[str]]]:
    """(question, answer, own passages) of the rows of tests/unit/small.py, from the almanac itself."""
    rows: list[tuple[str, str, list[str]]] = []
    for n, row in enumerate(make_world(0).train[:count]):
        own = list(row.passages)
        if n == count - 1:  # the last row has its neighbour's positive, and the one before that's
            own = [row_passage(n - 1, 0), row_passage(n - 1, 0)]
        rows.append((row.query, " and ".join([row.answers[0]] * (1 + n % 3)), list(dict.fromkeys(own))))
    return rows


def row_passage(row: int, place: int) -> str:
    return make_world(0).train[row].passages[place]


def embed(retriever: Any, texts: list[str]) -> torch.Tensor:
    """Each text by itself: the mean of its last hidden states, of length 1."""
    found = []
    for text in texts:
        ids = torch.tensor([retriever.tokenizer(text)["input_ids"]])
        found.append(F.normalize(retriever.encoder(ids).last_hidden_state[0].mean(0), dim=0))
    return torch.stack(found)


def answer_logps(generator: Any, passage: str, question: str, answer: str) -> torch.Tensor:
    """The log-probability of each token of the answer and of the end, read as one text."""
    tokenizer = generator.tokenizer
    asked = tokenizer(f"Passage: {passage}\nQuestion: {question}\nAnswer:")["input_ids"]
    whole = tokenizer(f"Passage: {passage}\nQuestion: {question}\nAnswer: {answer}")["input_ids"]
    assert whole[: len(asked)] == asked
    ids = torch.tensor([[*whole, tokenizer.eos_token_id]])
    logp = generator.lm(ids).logits[0, :-1].log_softmax(-1)
    return logp[range(len(asked) - 1, len(ids[0]) - 1), ids[0, len(asked) :]]


def reference(run: Run, micro_batches: list[list[int]]) -> tuple[float, dict[str, torch.Tensor]]:
    """The step's loss and every gradient."""
    retriever, generator = small_retriever(0, learn_temperature=True), small_generator(1)
    rows, losses = texts_of_rows(), []
    for micro in micro_batches:
        pool = list(dict.fromkeys(text for r in micro for text in rows[r][2]))
        queries, passages = embed(retriever, [rows[r][0] for r in micro]), embed(retriever, pool)
        scores = queries @ passages.T / retriever.log_temperature[0].exp()
        for n, r in enumerate(micro):
            question, answer, own = rows[r]
            best = [pool[j] for j in scores[n].argsort(descending=True).tolist()]
            read = [*own, *(p for p in best if p not in own)]
            read = read[:4] if "candidates" in run.flags else pool
            prior = scores[n, [pool.index(p) for p in read]].log_softmax(-1)
            logps = torch.stack([answer_logps(generator, p, question, answer) for p in read])  # (K, tokens)
            if run.flags.get("objective") == "rag_token":  # at each token, the passages are summed over
                losses.append(-(prior[:, None] + logps).logsumexp(0).sum())
            else:  # the passages are summed over for the whole answer
                losses.append(-(prior + logps.sum(1)).logsumexp(0))
    loss = torch.stack(losses).mean()
    loss.backward()
    named = [("retriever", retriever), ("generator", generator)]
    grads = {f"{m}.{k}": p.grad for m, module in named for k, p in module.named_parameters() if p.grad is not None}
    return float(loss.detach()), grads


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def world(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def found(world: int) -> list[list[Found]]:
    return run_ranks(train_real, world, list(RUNS.values()), timeout=300)


@pytest.mark.parametrize("name", RUNS)
def test_loss_and_gradients_are_those_of_plain_pytorch(found: list[list[Found]], world: int, name: str) -> None:
    run, n = RUNS[name], list(RUNS).index(name)
    order = small_parts(run.accumulation * world, ROWS).loader.rows_of(0)
    loss, wanted = reference(run, [order[k : k + ROWS] for k in range(0, len(order), ROWS)])
    for rank in range(world):
        ours = found[rank][n]
        assert ours.losses[0] == pytest.approx(loss, rel=1e-5)
        assert wanted.keys() >= {"retriever.log_temperature"} and set(wanted) <= set(ours.gradients)
        for key, gradient in wanted.items():
            torch.testing.assert_close(ours.gradients[key].view_as(gradient), gradient, rtol=1e-3, atol=1e-5)
        for model in ("retriever", "generator"):
            keys = [k for k in wanted if k.startswith(model)]
            apart = torch.cat([(ours.gradients[k].view_as(wanted[k]) - wanted[k]).flatten() for k in keys])
            whole = torch.cat([wanted[k].flatten() for k in keys])
            assert whole.norm() > 1e-2 and apart.norm() <= 3e-5 * whole.norm()
