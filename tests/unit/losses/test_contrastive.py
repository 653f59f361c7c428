from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ds_rag.losses import count_pairs, infonce, infonce_columns, positive_only

DIRECTIONS = pytest.mark.parametrize("loss", [infonce, infonce_columns])


def make(seed: int = 0, B: int = 4, N: int = 6):
    """Scores, positives (row 0 has none, row 1 several, column 0 two queries) and a pool with holes."""
    g = torch.Generator().manual_seed(seed)
    scores = (2 * torch.randn(B, N, generator=g, dtype=torch.float64)).requires_grad_()
    positive = torch.zeros(B, N, dtype=torch.bool)
    positive[1, [0, 2, 3]] = True
    positive[2, 0] = True
    positive[3, 5] = True
    candidate = torch.rand(B, N, generator=g) > 0.25
    candidate |= positive
    return scores, positive, candidate


def naive(loss, scores, positive, candidate):
    B, N = scores.shape
    out = []
    for i in range(B):
        total = torch.zeros((), dtype=scores.dtype)
        for n in range(N):
            if not (positive[i, n] and candidate[i, n]):
                continue
            line = [(i, m) for m in range(N)] if loss is infonce else [(b, n) for b in range(B)]
            rest = [scores[x].exp() for x in line if candidate[x] and not positive[x]]
            own = scores[i, n].exp()
            total = total - (own / (own + sum(rest))).log()
        out.append(total)
    return torch.stack(out)


@DIRECTIONS
def test_equals_a_loop_in_value_and_gradient(loss):
    weight = torch.tensor([0.7, 1.0, -0.3, 2.0], dtype=torch.float64)
    for seed in range(3):
        scores, positive, candidate = make(seed)
        for pool in (candidate, None):
            ours = loss(scores, positive, pool)
            theirs = naive(loss, scores, positive, torch.ones_like(positive) if pool is None else pool)
            torch.testing.assert_close(ours, theirs)
            a, b = (torch.autograd.grad(x @ weight, scores)[0] for x in (ours, theirs))
            torch.testing.assert_close(a, b)


@DIRECTIONS
def test_gradcheck(loss):
    scores, positive, candidate = make()
    assert torch.autograd.gradcheck(lambda s: loss(s, positive, candidate), (scores,))


def test_one_positive_is_cross_entropy_with_gradient_p_minus_one_hot():
    scores, _, _ = make()
    index = torch.tensor([3, 1, 4, 0])
    positive = F.one_hot(index, 6).bool()
    value = infonce(scores, positive)
    torch.testing.assert_close(value, F.cross_entropy(scores, index, reduction="none"))
    grad = torch.autograd.grad(value.sum(), scores)[0]
    torch.testing.assert_close(grad, scores.softmax(-1) - positive.double())


def test_columns_are_rows_of_the_transpose():
    scores, positive, candidate = make()
    columns = infonce_columns(scores, positive, candidate).sum()
    torch.testing.assert_close(columns, infonce(scores.T, positive.T, candidate.T).sum())
    assert (columns - infonce(scores, positive, candidate).sum()).abs() > 1e-2


@DIRECTIONS
def test_masked_places_may_hold_anything(loss):
    clean, positive, candidate = make()
    positive = positive | ~candidate  # positives outside the pool count for nothing
    dirty = clean.detach().clone()
    dirty[~candidate] = float("nan")
    dirty.requires_grad_()
    a, b = loss(clean, positive, candidate), loss(dirty, positive, candidate)
    assert torch.equal(a, b) and a.isfinite().all()
    ga, gb = torch.autograd.grad(a.sum(), clean)[0], torch.autograd.grad(b.sum(), dirty)[0]
    assert torch.equal(ga, gb) and (gb[~candidate] == 0).all() and gb.abs().max() > 0


@DIRECTIONS
def test_rows_without_positives_add_nothing_and_pairs_are_counted(loss):
    scores, positive, candidate = make()
    assert loss(scores, positive)[0] == 0 and (loss(scores, positive)[1:] > 0).all()
    assert count_pairs(positive) == 5
    candidate[1, 2] = False
    assert count_pairs(positive, candidate) == 4
    none = torch.zeros_like(positive)
    assert loss(scores, none).sum() == 0 and torch.autograd.grad(loss(scores, none).sum(), scores)[0].abs().max() == 0


@DIRECTIONS
def test_no_negatives_no_loss(loss):
    scores = torch.randn(1, 1, requires_grad=True)
    value = loss(scores, torch.ones(1, 1, dtype=torch.bool))
    assert value.item() == 0 and torch.autograd.grad(value.sum(), scores)[0].item() == 0


def test_other_positives_are_no_negatives():
    scores, positive, _ = make()
    negatives = scores[1, ~positive[1]].logsumexp(0)
    expected = F.softplus(negatives - scores[1, positive[1]]).sum()
    torch.testing.assert_close(infonce(scores, positive)[1], expected)
    one_at_a_time = sum(F.cross_entropy(scores[1], torch.tensor(n)) for n in (0, 2, 3))
    assert one_at_a_time - expected > 0.1  # what unlabelled positives would cost


def test_the_temperature_matters_and_half_types_are_computed_wide():
    scores, positive, _ = make()
    assert not torch.allclose(infonce(scores, positive), infonce(scores / 0.05, positive), rtol=1e-2)
    half = scores.detach().bfloat16()
    assert infonce(half, positive).dtype == torch.float32
    torch.testing.assert_close(infonce(half, positive), infonce(half.float(), positive))


def dalm(seed: int = 0, B: int = 4, N: int = 6, T: int = 7):
    g = torch.Generator().manual_seed(seed)
    scores = (2 * torch.randn(B, N, generator=g, dtype=torch.float64)).requires_grad_()
    logp = (-3 * torch.rand(B, T, generator=g, dtype=torch.float64)).requires_grad_()
    length = torch.tensor([7, 4, 5, 6])
    answer = torch.tensor([2, 1, 3, 1])
    position = torch.arange(T)[None]
    tokens = position < length[:, None]
    answers = tokens & (position >= (length - answer)[:, None])
    return scores, torch.tensor([3, 1, 4, 0]), logp, tokens, answers


def test_positive_only_equals_a_loop_that_adds_the_prior_to_each_answer_token():
    scores, index, logp, tokens, answers = dalm()
    prior = scores.log_softmax(1)
    per_token = [
        -(logp[i, t] + (prior[i, index[i]] if answers[i, t] else 0)) for i in range(4) for t in range(7) if tokens[i, t]
    ]
    square = scores[:, index]  # the other pool columns are negatives over rows only
    rows = F.cross_entropy(scores, index)
    columns = F.cross_entropy(square.T, torch.arange(4))
    expected = sum(per_token) / len(per_token) + (rows + columns) / 2
    ours = positive_only(scores, index, logp, tokens, answers).loss()
    torch.testing.assert_close(ours, expected)
    for a, b in zip(
        torch.autograd.grad(ours, (scores, logp)), torch.autograd.grad(expected, (scores, logp)), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_positive_only_terms_add_up_over_a_step():
    scores, index, logp, tokens, answers = dalm()
    whole = positive_only(scores, index, logp, tokens, answers)
    assert whole.tokens_B.tolist() == [7, 4, 5, 6] and whole.pairs_B.tolist() == [1, 1, 1, 1]
    n, pairs = whole.tokens_B.sum(), whole.pairs_B.sum()
    split = [positive_only(scores[i], index[i], logp[i], tokens[i], answers[i]) for i in (slice(0, 1), slice(1, 4))]
    for term in ("lm_B", "doc_prior_B", "rows_B"):  # columns compare the queries of a micro-batch
        torch.testing.assert_close(torch.cat([getattr(s, term) for s in split]), getattr(whole, term))
    lm = sum(s.lm_B.sum() for s in split) / n
    torch.testing.assert_close(lm, whole.lm_B.sum() / n)
    uneven = sum(s.loss() for s in split) / 2  # a mean of means is another loss
    assert (uneven - sum(s.loss(n, pairs) for s in split)).abs() > 1e-3


def test_positive_only_generator_never_moves_the_retriever():
    scores, index, logp, tokens, answers = dalm()
    grads = []
    for lp in (logp, -5 * torch.rand_like(logp)):
        grads.append(torch.autograd.grad(positive_only(scores, index, lp, tokens, answers).loss(), scores)[0])
    assert torch.equal(*grads) and grads[0].abs().max() > 0


def test_positive_only_shared_positive_is_no_negative_and_masked_places_may_hold_anything():
    scores, _, logp, tokens, answers = dalm()
    index = torch.tensor([2, 2, 4, 0])
    terms = positive_only(scores, index, logp, tokens, answers)
    expected = naive(infonce_columns, scores, F.one_hot(index, 6).bool(), torch.ones(4, 6, dtype=torch.bool))
    torch.testing.assert_close(terms.columns_B, expected)

    known = F.one_hot(index, 6).bool()
    known[0, 5] = True
    pool = torch.ones(4, 6, dtype=torch.bool)
    pool[:, 1] = False
    dirty_scores, dirty_logp = scores.detach().clone(), logp.detach().clone()
    dirty_scores[:, 1], dirty_logp[~tokens] = math.nan, math.nan
    dirty_scores.requires_grad_(), dirty_logp.requires_grad_()
    masks = {"positive_mask_BN": known, "candidate_mask_BN": pool}
    clean = positive_only(scores, index, logp, tokens, answers, **masks)
    dirty = positive_only(dirty_scores, index, dirty_logp, tokens, answers, **masks)
    assert torch.equal(clean.loss(), dirty.loss()) and clean.pairs_B.tolist() == [2, 1, 1, 1]
    for g in torch.autograd.grad(dirty.loss(), (dirty_scores, dirty_logp)):
        assert g.isfinite().all() and g.abs().max() > 0
