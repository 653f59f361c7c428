"""Our losses against float64 numbers computed elsewhere; there, scores are raw and the temperature named."""

from __future__ import annotations

import json

import pytest
import torch

from ds_rag.losses import emdr2, pdist, rag_sequence, rag_token

f64 = torch.float64


@pytest.fixture
def vectors(shared_dir):
    return json.loads((shared_dir / "vectors" / "losses.json").read_text())


def token_logprobs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """logits (B, K, T, V), labels (B, T) -> (B, K, T)"""
    index = labels.clamp(min=0)[:, None, :, None].expand(*logits.shape[:3], 1)
    return logits.log_softmax(-1).gather(-1, index)[..., 0]


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_rag(vectors, kind):
    logits = 2 * torch.sin(0.7 * torch.arange(2 * 4 * 5, dtype=f64)).view(1, 2, 4, 5)
    assert len(vectors["rag"]["cases"]) == 4
    for case in vectors["rag"]["cases"]:
        labels = torch.tensor([case["labels"]])
        scores = torch.tensor([vectors["rag"]["scores"]], dtype=f64, requires_grad=True)
        logp = token_logprobs(logits[:, :, : labels.shape[1]], labels)
        fn = rag_sequence if kind == "sequence" else rag_token
        loss = fn(scores, logp, torch.ones_like(labels, dtype=torch.bool))
        expected = case[kind]
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-10)
        grad = torch.autograd.grad(loss.sum(), scores)[0]
        assert grad[0].tolist() == pytest.approx(expected["dscores"], rel=1e-9, abs=1e-12)


def test_pdist(vectors):
    case = vectors["pdist_kl"]
    s = torch.tensor(case["s"], dtype=f64, requires_grad=True)
    g = torch.tensor(case["mean_token_logprob"], dtype=f64)[:, :, None]
    loss_B = pdist(s / case["tau"], g, torch.ones(2, 1), target_temperature=case["tau"])
    loss = loss_B.sum() / s.numel()  # these numbers are a mean over B * K, ours over queries
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    grad = torch.autograd.grad(loss, s)[0]
    assert grad.flatten().tolist() == pytest.approx([d for row in case["ds"] for d in row], abs=1e-8)


def test_emdr2(vectors):
    case = vectors["emdr2"]
    s = torch.tensor(case["s"], dtype=f64, requires_grad=True)
    labels = torch.tensor(case["labels"])
    logits = torch.sin(0.9 * torch.arange(2 * 3 * 2 * 4, dtype=f64)).view(2, 3, 2, 4)
    mask = labels != -100
    loss = emdr2(s, token_logprobs(logits, labels), mask).sum() / mask.sum()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    grad = torch.autograd.grad(loss, s)[0]
    assert grad.flatten().tolist() == pytest.approx([d for row in case["ds"] for d in row], abs=1e-8)
