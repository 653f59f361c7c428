from __future__ import annotations

import pytest
import torch

from ds_rag.models.pooling import POOLERS

LENGTHS = [5, 1, 3]
EXPECTED = {
    "cls": lambda rows: rows[0],
    "mean": lambda rows: sum(rows) / len(rows),
    "last": lambda rows: rows[-1],
    "max": lambda rows: torch.stack(list(rows)).max(0).values,
}


def batch(side: str, poison: float = float("nan")):
    """Three texts of 5, 1 and 3 tokens, padded on one side with `poison`."""
    g = torch.Generator().manual_seed(0)
    texts = [torch.randn(n, 4, generator=g) for n in LENGTHS]
    hidden, mask = torch.full((3, 5, 4), poison), torch.zeros(3, 5, dtype=torch.long)
    for i, text in enumerate(texts):
        where = slice(0, len(text)) if side == "right" else slice(5 - len(text), 5)
        hidden[i, where], mask[i, where] = text, 1
    return hidden, mask, texts


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", POOLERS)
def test_equals_pooling_each_text_alone_on_either_side(name, side):
    hidden, mask, texts = batch(side)
    expected = torch.stack([EXPECTED[name](list(text)) for text in texts])
    for m in (mask, mask.bool()):
        torch.testing.assert_close(POOLERS[name](hidden, m), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", POOLERS)
def test_padding_gets_no_gradient(name, side):
    hidden, mask, _ = batch(side)
    hidden.requires_grad_()
    grad = torch.autograd.grad(POOLERS[name](hidden, mask).square().sum(), hidden)[0]
    assert grad.isfinite().all() and (grad[mask == 0] == 0).all() and (grad != 0).any()


@pytest.mark.parametrize("name", POOLERS)
def test_dtype_is_kept_and_an_empty_text_is_zero(name):
    hidden, mask, _ = batch("right")
    mask[1] = 0
    out = POOLERS[name](hidden.bfloat16(), mask)
    assert out.dtype == torch.bfloat16 and out.shape == (3, 4)
    assert (out[1] == 0).all() and (out[0] != 0).any() and out.isfinite().all()


def test_mean_is_summed_in_float32():
    hidden = torch.full((1, 4096, 2), 100.0, dtype=torch.float16)  # the sum is beyond float16
    assert (POOLERS["mean"](hidden, torch.ones(1, 4096)) == 100).all()


def test_the_poolers_differ():
    hidden, mask, _ = batch("left")
    out = [pool(hidden, mask)[0] for pool in POOLERS.values()]
    assert len({tuple(x.tolist()) for x in out}) == len(POOLERS)
