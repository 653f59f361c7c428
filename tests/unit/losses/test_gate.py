"""The gate against loops over plain numbers."""

from __future__ import annotations

import pytest
import torch

from ds_rag.losses import passage_gains, passes_gate


def test_gains_equal_a_loop(cells):
    c = cells()
    without_BT = -3 * torch.rand(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    means = torch.stack([g[mask].mean() for g, mask in zip(without_BT, c.answer_mask, strict=True)])
    found = passage_gains(c.logp, c.answer_mask, means)
    for i in range(3):
        ts = [t for t in range(5) if c.answer_mask[i, t]]
        for j in range(4):
            gain = sum(float(c.logp[i, j, t] - without_BT[i, t]) for t in ts) / len(ts)
            assert float(found[i, j]) == pytest.approx(gain)
    assert not found.requires_grad
    torch.testing.assert_close(passage_gains(c.logp, c.answer_mask) - found, means[:, None].expand(3, 4))


def test_tokens_after_the_answer_do_not_count(cells):
    c = cells()
    other = c.logp.detach().masked_fill(~c.answer_mask[:, None], torch.nan)
    torch.testing.assert_close(passage_gains(other, c.answer_mask), passage_gains(c.logp, c.answer_mask))


GAINS = torch.tensor([[0.1, 2.0, 1.8], [3.0, -1.0, 0.5], [0.2, 0.9, -4.0], [1.2, 1.2, 0.0]])


@pytest.mark.parametrize(
    ("gain", "margin", "passes"),
    [
        (None, None, [True, True, True, True]),
        (1.2, None, [True, True, False, True]),
        (None, 0.5, [False, True, True, False]),
        (1.2, 0.5, [False, True, False, False]),
        (-5.0, 0.0, [True, True, True, True]),
        (3.1, None, [False, False, False, False]),
    ],
)
def test_the_best_gain_and_its_distance_to_the_second_decide(gain, margin, passes):
    assert passes_gate(GAINS, gain, margin).tolist() == passes


def test_one_candidate_has_no_margin_and_nan_is_not_hidden():
    assert passes_gate(GAINS[:, :1], None, 9.0).all()
    assert passes_gate(torch.full((1, 2), torch.nan), 1.0, 1.0).all()
