"""Which cells keep their backward: shares by hand, what is dropped, and draws that are right on average."""

from __future__ import annotations

import pytest
import torch

from ds_rag.losses import posterior, rag_sequence, rag_token
from ds_rag.step.cell_selection import cell_fractions, draw_one, keep_heavy, token_fractions

B, K, T = 3, 4, 5
QUERY_C = torch.arange(B).repeat_interleave(K)


def case(loss: str = "rag_sequence") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, log-probabilities, mask, and the loss's gradient on the log-probabilities as (C, T)."""
    random = torch.Generator().manual_seed(0)
    scores_BK = torch.randn(B, K, generator=random, dtype=torch.float64)
    logp_BKT = (-2 * torch.rand(B, K, T, generator=random, dtype=torch.float64)).requires_grad_()
    mask_BT = torch.arange(T) < torch.tensor([5, 2, 3])[:, None]
    fn = {"rag_sequence": rag_sequence, "rag_token": rag_token}[loss]
    (grad,) = torch.autograd.grad(0.37 * fn(scores_BK, logp_BKT, mask_BT).sum(), logp_BKT)
    return scores_BK, logp_BKT.detach(), mask_BT, grad.reshape(B * K, T)


def test_shares_of_rag_sequence_are_the_posterior():
    scores_BK, logp_BKT, mask_BT, grad_CT = case()
    share_CT = token_fractions(grad_CT, QUERY_C, B)
    wanted_C = posterior(scores_BK, logp_BKT, mask_BT).flatten()
    torch.testing.assert_close(cell_fractions(share_CT, QUERY_C, B), wanted_C)
    torch.testing.assert_close(share_CT, wanted_C[:, None] * mask_BT.repeat_interleave(K, 0))


def test_shares_of_rag_token_are_each_tokens_own_posterior():
    scores_BK, logp_BKT, mask_BT, grad_CT = case("rag_token")
    r_BKT = (scores_BK.log_softmax(1)[..., None] + logp_BKT).softmax(1)
    share_CT = token_fractions(grad_CT, QUERY_C, B)
    torch.testing.assert_close(share_CT, (r_BKT * mask_BT[:, None]).reshape(B * K, T))
    sums_B = torch.zeros(B, dtype=torch.float64).index_add_(0, QUERY_C, cell_fractions(share_CT, QUERY_C, B))
    torch.testing.assert_close(sums_B, torch.ones(B, dtype=torch.float64))


def test_light_cells_are_dropped_by_their_heaviest_token():
    weight_CA = torch.tensor([[0.90, 0.50], [0.06, 0.08], [0.04, 0.42], [0.0, 0.0], [0.0, 0.0]])
    query_C = torch.tensor([0, 0, 0, 1, 1])  # the second query weighs nothing
    keep_C, dropped = keep_heavy(weight_CA, query_C, 2, threshold=0.1)
    assert keep_C.tolist() == [True, False, True, False, False]  # the third for its second token
    assert dropped == pytest.approx(0.07 / 2)
    keep_C, dropped = keep_heavy(weight_CA, query_C, 2, threshold=0.0)
    assert dropped == pytest.approx(0.0)


def test_the_heaviest_cell_stays_whatever_the_threshold():
    weight_CA = torch.tensor([[0.2], [0.3], [0.25], [0.25]])
    keep_C, dropped = keep_heavy(weight_CA, torch.zeros(4, dtype=torch.int64), 1, threshold=0.99)
    assert keep_C.tolist() == [False, True, False, False]
    assert dropped == pytest.approx(0.7)


@pytest.mark.parametrize("loss", ["rag_sequence", "rag_token"])
def test_draws_average_to_the_exact_gradient(loss):
    """Cells with random gradients of their own: the mean over draws, and a bias that would show."""
    *_, weight_CA = case(loss)
    of_cell_CAP = torch.randn(B * K, T, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact_P = torch.einsum("ca,cap->p", weight_CA, of_cell_CAP)
    draws, unweighted = [], []
    for n in range(4000):
        keep_C, factor_C = draw_one(weight_CA, QUERY_C, B, [7, n])
        assert torch.zeros(B).index_add_(0, QUERY_C, keep_C.float()).tolist() == [1.0] * B
        draws.append(torch.einsum("c,ca,cap->p", factor_C, weight_CA, of_cell_CAP))
        unweighted.append(torch.einsum("c,ca,cap->p", keep_C.double(), weight_CA, of_cell_CAP))
    mean_P, error_P = torch.stack(draws).mean(0), torch.stack(draws).std(0) / 4000**0.5
    assert ((mean_P - exact_P).abs() < 4.5 * error_P).all()
    assert ((torch.stack(unweighted).mean(0) - exact_P).abs() > 10 * error_P).any()


def test_what_is_not_finite_is_kept_so_that_the_step_is_skipped():
    weight_CA = torch.tensor([[0.5], [float("nan")], [0.2], [0.3]])
    query_C = torch.tensor([0, 0, 1, 1])
    assert keep_heavy(weight_CA, query_C, 2, 0.9)[0].tolist()[1]
    keep_C, factor_C = draw_one(weight_CA, query_C, 2, [0])
    assert keep_C[1] and factor_C[1] == 1.0


def test_draws_follow_the_seed_and_skip_queries_without_weight():
    *_, weight_CA = case()
    first, again, other = (draw_one(weight_CA, QUERY_C, B, seed)[0] for seed in ([1, 2], [1, 2], [1, 3]))
    assert torch.equal(first, again)
    assert any(not torch.equal(first, draw_one(weight_CA, QUERY_C, B, [1, n])[0]) for n in range(3, 20)), other
    keep_C, factor_C = draw_one(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]), 2, [0])
    assert not keep_C.any() and factor_C.tolist() == [0.0] * 4
