"""Chunked log-probabilities against cross-entropy over all logits at once."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ds_rag.models import token_logprobs
from ds_rag.models.token_logprobs import target_logprobs


def case(dtype: torch.dtype) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 50, dtype=dtype)
    hidden_UD = torch.randn(23, 8, dtype=dtype, requires_grad=True)
    return linear, hidden_UD, torch.randint(50, (23,)), torch.rand(23, dtype=torch.promote_types(dtype, torch.float32))


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed again"])
@pytest.mark.parametrize("rows", [1, 5, 23, 100])
def test_values_and_gradients(rows, kept, monkeypatch):
    linear, hidden_UD, target_U, weight_U = case(torch.float64)
    monkeypatch.setattr(token_logprobs, "CHUNK_BYTES", rows * 50 * 4)
    keep = 1e9 if kept else 0.0
    calls = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return linear(x)

    with torch.no_grad():
        torch.testing.assert_close(
            target_logprobs(linear, hidden_UD, target_U, 50),
            -F.cross_entropy(linear(hidden_UD), target_U, reduction="none"),
            rtol=1e-12,
            atol=1e-12,
        )
    leaves = [hidden_UD, linear.weight, linear.bias]
    found_U = target_logprobs(counted, hidden_UD, target_U, 50, keep)
    found = torch.autograd.grad((found_U * weight_U).sum(), leaves)
    assert max(calls) <= rows and sum(calls) == 23 * (1 if kept else 2)
    expected_U = -F.cross_entropy(linear(hidden_UD), target_U, reduction="none")
    torch.testing.assert_close(found_U, expected_U, rtol=1e-12, atol=1e-12)
    for a, b in zip(found, torch.autograd.grad((expected_U * weight_U).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_half_types_are_summed_in_float32():
    linear, hidden_UD, target_U, weight_U = case(torch.bfloat16)
    found_U = target_logprobs(linear, hidden_UD, target_U, 50)
    assert found_U.dtype == torch.float32
    expected_U = -F.cross_entropy(linear(hidden_UD).float(), target_U, reduction="none")
    torch.testing.assert_close(found_U, expected_U, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad((found_U * weight_U).sum(), [hidden_UD])
    assert grad.dtype == torch.bfloat16


def test_gradcheck():
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: token_logprobs.LogProb.apply(x, torch.tensor([0, 3, 6, 3])), logits)
