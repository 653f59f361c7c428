from __future__ import annotations

import math

import pytest
import torch

from ds_rag.losses import Temper, answer_log_prob, entropy, posterior, rag_sequence, rag_token
from ds_rag.runtime.errors import UserError

BOTH = pytest.mark.parametrize("loss", [rag_sequence, rag_token])


def naive(loss, c, masked: bool, answer_logprob: str = "sum") -> torch.Tensor:
    """Plain probabilities, one number at a time."""
    out = []
    for i in range(len(c.scores)):
        js = [j for j in range(c.scores.shape[1]) if c.candidate_mask[i, j] or not masked]
        ts = [t for t in range(c.logp.shape[2]) if c.answer_mask[i, t]]
        total = sum(c.scores[i, j].exp() for j in js)
        p = {j: c.scores[i, j].exp() / total for j in js}
        if loss is rag_token:
            out.append(-sum(sum(p[j] * c.logp[i, j, t].exp() for j in js).log() for t in ts))
        else:
            n = len(ts) if answer_logprob == "mean" else 1
            out.append(-sum(p[j] * (sum(c.logp[i, j, t] for t in ts) / n).exp() for j in js).log())
    return torch.stack(out)


def grads(value, c):
    return torch.autograd.grad(value, (c.scores, c.logp), allow_unused=True, materialize_grads=True)


@BOTH
@pytest.mark.parametrize("masked", [True, False])
def test_equals_a_loop_in_value_and_gradient(loss, masked, cells):
    for seed in range(3):
        c = cells(seed=seed)
        ours = loss(*c.args(), candidate_mask_BK=c.candidate_mask if masked else None)
        theirs = naive(loss, c, masked)
        torch.testing.assert_close(ours, theirs)
        weight = torch.tensor([1.0, -0.3, 2.0], dtype=torch.float64)  # rows must not mix
        for a, b in zip(grads(ours @ weight, c), grads(theirs @ weight, c), strict=True):
            torch.testing.assert_close(a, b)


def test_mean_answer_logprob_equals_a_loop(cells):
    c = cells()
    ours = rag_sequence(*c.args(), answer_logprob="mean")
    torch.testing.assert_close(ours, naive(rag_sequence, c, False, "mean"))
    assert not torch.allclose(ours[1:], rag_sequence(*c.args())[1:])


def naive_tempered(loss, c, exponent: float, weight: float) -> torch.Tensor:
    """Products of powers of plain probabilities, one number at a time."""
    out = []
    for i in range(len(c.scores)):
        p, ts = c.scores[i].softmax(-1), [t for t in range(c.logp.shape[2]) if c.answer_mask[i, t]]
        powers = [[c.logp[i, j, t].exp() ** (weight / len(ts) ** exponent) for t in ts] for j in range(len(p))]
        if loss is rag_token:
            out.append(-sum(sum(p[j] * powers[j][t] for j in range(len(p))).log() for t in range(len(ts))))
        else:
            out.append(-sum(p[j] * math.prod(powers[j]) for j in range(len(p))).log())
    return torch.stack(out)


@pytest.mark.parametrize(("exponent", "weight"), [(0.0, 3.0), (0.5, 1.0), (1.5, 0.2), (-0.5, 0.5)])
def test_the_tempered_marginal_equals_a_loop_in_value_and_gradient(exponent, weight, cells):
    row_weights = torch.tensor([1.0, -0.3, 2.0], dtype=torch.float64)
    for seed in range(2):
        c = cells(seed=seed)
        both = {
            rag_sequence: rag_sequence(*c.args(), answer_logprob=Temper(exponent, weight)),
            rag_token: rag_token(*c.args(), answer_weight=weight),  # each token is an answer of length 1
        }
        for loss, ours in both.items():
            theirs = naive_tempered(loss, c, 0.0 if loss is rag_token else exponent, weight)
            torch.testing.assert_close(ours, theirs)
            for a, b in zip(grads(ours @ row_weights, c), grads(theirs @ row_weights, c), strict=True):
                torch.testing.assert_close(a, b)
        untempered = rag_sequence(*c.args())
        longer = slice(1, None) if weight == 1 else slice(None)  # the first answer is one token long
        assert (both[rag_sequence] - untempered)[longer].abs().min() > 1e-3


def test_sum_and_mean_are_tempers(cells):
    c = cells()
    for name, temper in (("sum", Temper(0.0, 1.0)), ("mean", Temper(1.0, 1.0))):
        for function in (rag_sequence, posterior):
            assert torch.equal(function(*c.args(), answer_logprob=name), function(*c.args(), answer_logprob=temper))
    assert torch.equal(rag_token(*c.args()), rag_token(*c.args(), answer_weight=1.0))


def test_gradcheck_of_the_tempered_marginal(cells):
    c = cells(B=2, K=3, T=3)
    mask = c.candidate_mask

    def losses(s, g):
        sequence = rag_sequence(s, g, c.answer_mask, candidate_mask_BK=mask, answer_logprob=Temper(0.6, 1.7))
        return sequence, rag_token(s, g, c.answer_mask, candidate_mask_BK=mask, answer_weight=1.7)

    assert torch.autograd.gradcheck(losses, (c.scores, c.logp))


def test_closed_form_gradients(cells):
    c = cells()
    p = c.scores.softmax(-1)
    G = (c.logp * c.answer_mask[:, None]).sum(-1)
    r = (p.log() + G).softmax(-1)
    ds, dg = grads(rag_sequence(*c.args()).sum(), c)
    torch.testing.assert_close(ds, p - r)
    torch.testing.assert_close(dg, -r[:, :, None] * c.answer_mask[:, None])
    torch.testing.assert_close(r, posterior(*c.args()))

    r_token = (p.log()[:, :, None] + c.logp).softmax(1) * c.answer_mask[:, None]
    ds, dg = grads(rag_token(*c.args()).sum(), c)
    torch.testing.assert_close(ds, (p[:, :, None] * c.answer_mask[:, None] - r_token).sum(-1))
    torch.testing.assert_close(dg, -r_token)


@BOTH
def test_gradcheck(loss, cells):
    c = cells(B=2, K=3, T=3)
    assert torch.autograd.gradcheck(
        lambda s, g: loss(s, g, c.answer_mask, candidate_mask_BK=c.candidate_mask), (c.scores, c.logp)
    )


@BOTH
def test_masked_places_may_hold_anything(loss, cells):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        clean = cells(dtype=dtype)
        dirty = clean.poisoned()
        values = [loss(*c.args(), candidate_mask_BK=c.candidate_mask) for c in (clean, dirty)]
        assert torch.equal(*values) and values[0].isfinite().all()
        for a, b in zip(grads(values[0].sum(), clean), grads(values[1].sum(), dirty), strict=True):
            assert torch.equal(a, b) and a.isfinite().all()


@BOTH
def test_masking_a_candidate_is_leaving_it_out(loss, cells):
    c = cells()
    mask = torch.tensor([True, False, True, True]).expand(3, 4)
    kept = mask[0]
    masked = loss(*c.args(), candidate_mask_BK=mask)
    torch.testing.assert_close(masked, loss(c.scores[:, kept], c.logp[:, kept], c.answer_mask))
    assert not torch.allclose(masked, loss(*c.args()))


@BOTH
def test_one_candidate_is_plain_cross_entropy(loss, cells):
    c = cells(K=1)
    value = loss(*c.args())
    torch.testing.assert_close(value, -(c.logp[:, 0] * c.answer_mask).sum(-1))
    assert grads(value.sum(), c)[0].abs().max() == 0


@BOTH
def test_a_one_token_answer_keeps_the_priors_gradient(loss, cells):
    c = cells(B=1, T=1)
    assert grads(loss(*c.args()).sum(), c)[0].abs().min() > 1e-4


@BOTH
def test_padding_rows_are_zero_and_silent(loss, cells):
    c = cells()
    c.answer_mask[0], c.candidate_mask[2] = False, False
    d = c.poisoned()
    value = loss(*d.args(), candidate_mask_BK=d.candidate_mask)
    assert value[0] == 0 and value[2] == 0 and value[1] > 0
    for grad in grads(value.sum(), d):
        assert grad.isfinite().all() and grad[0].abs().max() == 0 and grad[2].abs().max() == 0


def test_sequence_and_token_differ_only_beyond_one_token(cells):
    c = cells()  # the first answer has one token
    sequence, token = rag_sequence(*c.args()), rag_token(*c.args())
    torch.testing.assert_close(sequence[0], token[0])
    assert (sequence[1:] - token[1:]).abs().min() > 1e-3


@BOTH
def test_the_temperature_matters(loss, cells):
    c = cells()
    assert not torch.allclose(loss(*c.args()), loss(c.scores / 0.05, c.logp, c.answer_mask), rtol=1e-2)


def test_a_prior_over_the_pool_adds_the_missing_posterior_mass(cells):
    c = cells(K=7)
    chosen = torch.tensor([[0, 2, 5], [6, 1, 3], [4, 0, 2]])
    logp = c.logp.gather(1, chosen[:, :, None].expand(-1, -1, 5))
    prior = c.scores.log_softmax(-1).gather(1, chosen)
    pooled = rag_sequence(c.scores.gather(1, chosen), logp, c.answer_mask, log_prior_BK=prior)
    mass = posterior(*c.args()).gather(1, chosen).sum(-1)
    torch.testing.assert_close(pooled, rag_sequence(*c.args()) - mass.log())
    unscored = torch.ones(3, 7, dtype=torch.bool).scatter(1, chosen, False)
    assert (grads(pooled.sum(), c)[0][unscored] > 0).all()  # still pushed down

    d = cells(K=7, seed=1)  # the same prior handed in is no prior at all
    for loss in (rag_sequence, rag_token):
        given = loss(torch.full_like(d.scores, math.nan), d.logp, d.answer_mask, log_prior_BK=d.scores.log_softmax(-1))
        torch.testing.assert_close(given, loss(*d.args()))


def test_posterior_and_entropy(cells):
    c = cells().poisoned()
    r = posterior(*c.args(), candidate_mask_BK=c.candidate_mask)
    torch.testing.assert_close(r.sum(-1), torch.ones(3, dtype=torch.float64))
    assert (r[~c.candidate_mask] == 0).all()
    expected = [-sum(x * math.log(x) for x in row.tolist() if x > 0) for row in r]
    torch.testing.assert_close(entropy(r), torch.tensor(expected, dtype=torch.float64))


def test_answer_log_prob_of_masked_candidates_is_zero(cells):
    c = cells().poisoned()
    G = answer_log_prob(c.logp, c.answer_mask, candidate_mask_BK=c.candidate_mask)
    assert (G[~c.candidate_mask] == 0).all() and (G[c.candidate_mask] < 0).all()


@BOTH
def test_half_types_are_computed_wide(loss, cells):
    c = cells(dtype=torch.bfloat16)
    value = loss(*c.args())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(c.scores.float(), c.logp.float(), c.answer_mask))
    assert loss(*cells().args()).dtype == torch.float64


@BOTH
def test_long_answers_stay_finite(loss, cells):
    c = cells(B=1, K=3, T=4, dtype=torch.float32)
    mask = torch.ones(1, 4, dtype=torch.bool)
    value = loss(50 * c.scores, 2000 * c.logp, mask)
    assert value.isfinite().all() and all(g.isfinite().all() for g in grads(value.sum(), c))


def test_what_users_get_wrong_is_named(cells):
    c = cells()
    with pytest.raises(TypeError, match="answer_logprob"):  # there is no sum over an answer to average
        rag_token(*c.args(), answer_logprob="mean")
    with pytest.raises(UserError, match="did you mean 'mean'"):
        rag_sequence(*c.args(), answer_logprob="means")
    with pytest.raises(AssertionError):
        rag_sequence(c.scores[:, :1], c.logp, c.answer_mask)  # would broadcast into a wrong loss
