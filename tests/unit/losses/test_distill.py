from __future__ import annotations

import pytest
import torch

from ds_rag.losses import emdr2, pdist, posterior, rag_sequence, rag_token, reader_loss, replug_lsr
from ds_rag.runtime.errors import UserError

TAU = 0.7  # both teachers' temperature in these tests
ALL = pytest.mark.parametrize("loss", [emdr2, pdist, replug_lsr])


def naive(loss, c) -> torch.Tensor:
    out = []
    for i in range(len(c.scores)):
        js = [j for j in range(c.scores.shape[1]) if c.candidate_mask[i, j]]
        ts = [t for t in range(c.logp.shape[2]) if c.answer_mask[i, t]]
        g = c.logp.detach()[i]
        total = sum(c.scores[i, j].exp() for j in js)
        p = {j: c.scores[i, j].exp() / total for j in js}
        if loss is emdr2:
            out.append(-sum(sum(p[j] * g[j, t].exp() for j in js).log() for t in ts))
            continue
        q = {j: (sum(g[j, t] for t in ts) / len(ts) / TAU).exp() for j in js}
        mass = sum(q.values())
        q = {j: q[j] / mass for j in js}
        first, second = (q, p) if loss is pdist else (p, q)
        out.append(sum(first[j] * (first[j].log() - second[j].log()) for j in js))
    return torch.stack(out)


def call(loss, c, **more):
    options = {} if loss is emdr2 else {"target_temperature": TAU}
    return loss(*c.args(), candidate_mask_BK=c.candidate_mask, **options, **more)


@ALL
def test_equals_a_loop_in_value_and_gradient(loss, cells):
    for seed in range(3):
        c = cells(seed=seed)
        weight = torch.tensor([1.0, -0.3, 2.0], dtype=torch.float64)
        ours, theirs = call(loss, c), naive(loss, c)
        torch.testing.assert_close(ours, theirs)
        a, b = (torch.autograd.grad(x @ weight, c.scores)[0] for x in (ours, theirs))
        torch.testing.assert_close(a, b)


def test_closed_form_gradients(cells):
    c = cells()
    p, m = c.scores.softmax(-1), c.answer_mask[:, None]

    def gradient(loss, **options):
        return torch.autograd.grad(loss(*c.args(), **options).sum(), c.scores)[0]

    r = (p.log()[:, :, None] + c.logp).softmax(1)
    torch.testing.assert_close(gradient(emdr2), ((p[:, :, None] - r) * m).sum(-1))
    q = ((c.logp * m).sum(-1) / m.sum(-1) / TAU).softmax(-1)
    torch.testing.assert_close(gradient(pdist, target_temperature=TAU), p - q)
    kl = (p * (p / q).log()).sum(-1, keepdim=True)
    torch.testing.assert_close(gradient(replug_lsr, target_temperature=TAU), p * ((p / q).log() - kl))


@ALL
def test_gradcheck(loss, cells):
    c = cells(B=2, K=3, T=3)
    assert torch.autograd.gradcheck(
        lambda s: loss(s, c.logp, c.answer_mask, candidate_mask_BK=c.candidate_mask), (c.scores,)
    )


@ALL
def test_the_generator_is_detached(loss, cells):
    c = cells()
    assert torch.autograd.grad(call(loss, c).sum(), c.logp, allow_unused=True)[0] is None


@ALL
def test_masked_places_may_hold_anything(loss, cells):
    for dtype in (torch.float64, torch.bfloat16):
        clean = cells(dtype=dtype)
        dirty = clean.poisoned()
        a, b = call(loss, clean), call(loss, dirty)
        assert torch.equal(a, b) and a.isfinite().all() and a.dtype != torch.bfloat16
        ga, gb = (torch.autograd.grad(x.sum(), y.scores)[0] for x, y in ((a, clean), (b, dirty)))
        assert torch.equal(ga, gb) and ga.isfinite().all() and ga.abs().max() > 0


@ALL
def test_masking_a_candidate_is_leaving_it_out(loss, cells):
    c = cells()
    mask = torch.tensor([True, False, True, True]).expand(3, 4)
    masked = loss(*c.args(), candidate_mask_BK=mask)
    torch.testing.assert_close(masked, loss(c.scores[:, mask[0]], c.logp[:, mask[0]], c.answer_mask))
    assert not torch.allclose(masked, loss(*c.args()))


@ALL
def test_padding_rows_are_zero_and_silent(loss, cells):
    c = cells()
    c.answer_mask[0], c.candidate_mask[2] = False, False
    d = c.poisoned()
    value = call(loss, d)
    assert value[0] == 0 and value[2] == 0
    grad = torch.autograd.grad(value.sum(), d.scores)[0]
    assert grad.isfinite().all() and grad[0].abs().max() == 0 and grad[2].abs().max() == 0


@ALL
def test_one_candidate_teaches_nothing(loss, cells):
    c = cells(K=1)
    assert torch.autograd.grad(call(loss, c).sum(), c.scores)[0].abs().max() == 0


@ALL
def test_a_one_token_answer_still_teaches(loss, cells):
    c = cells(B=1, T=1)
    assert torch.autograd.grad(loss(*c.args()).sum(), c.scores)[0].abs().min() > 1e-4


def test_cases_that_must_differ(cells):
    c = cells()
    for loss in (pdist, replug_lsr):
        a, b = (loss(*c.args(), target_temperature=t) for t in (0.1, 1.0))
        assert (a - b).abs().min() > 1e-3
        assert not torch.allclose(loss(*c.args()), loss(c.scores / 0.05, c.logp, c.answer_mask), rtol=1e-2)
    assert (call(pdist, c) - call(replug_lsr, c)).abs().max() > 1e-2  # the direction of the divergence
    torch.testing.assert_close(emdr2(*c.args()), rag_token(*c.args()))  # same value, no gradient to g


def test_the_teacher_averages_so_length_does_not_sharpen_it(cells):
    c = cells(B=1, T=1)
    long = c.logp.expand(1, 4, 6)
    for loss in (pdist, replug_lsr):
        torch.testing.assert_close(
            loss(c.scores, long, torch.ones(1, 6, dtype=torch.bool)), loss(c.scores, c.logp, c.answer_mask)
        )


def test_pool_prior(cells):
    c = cells(K=6)
    prior = c.scores.log_softmax(-1)[:, :3]
    loss = pdist(c.scores[:, :3], c.logp[:, :3], c.answer_mask, log_prior_BK=prior, target_temperature=TAU)
    q = pdist(c.scores[:, :3], c.logp[:, :3], c.answer_mask, target_temperature=TAU)
    torch.testing.assert_close(loss, q - prior.exp().sum(-1).log())
    assert (torch.autograd.grad(loss.sum(), c.scores)[0][:, 3:] > 0).all()
    with pytest.raises(TypeError, match="log_prior_BK"):  # not defined on passages that are not scored
        replug_lsr(c.scores[:, :3], c.logp[:, :3], c.answer_mask, log_prior_BK=prior)


@pytest.mark.parametrize("loss", [pdist, replug_lsr])
def test_a_temperature_must_be_above_zero(loss, cells):
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="--target_temperature"):
            loss(*cells().args(), target_temperature=bad)


@pytest.mark.parametrize("answer_logprob", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["prior", "posterior"])
def test_reader_loss(kind, answer_logprob, cells):
    c = cells().poisoned()
    more = {"candidate_mask_BK": c.candidate_mask, "answer_logprob": answer_logprob}
    value = reader_loss(*c.args(), kind=kind, **more)
    for i in range(3):
        js = [j for j in range(4) if c.candidate_mask[i, j]]
        ts = [t for t in range(5) if c.answer_mask[i, t]]
        G = torch.stack([c.logp[i, j, ts].sum() / (len(ts) if answer_logprob == "mean" else 1) for j in js])
        w = c.scores[i, js].log_softmax(0) + (G if kind == "posterior" else 0)
        torch.testing.assert_close(value[i], -(w.softmax(0) * G).sum())
    scores_grad, grad = torch.autograd.grad(value.sum(), (c.scores, c.logp), allow_unused=True)
    assert scores_grad is None and grad.isfinite().all() and grad.abs().max() > 0
    marginal = torch.autograd.grad(rag_sequence(*c.args(), **more).sum(), c.logp)[0]
    assert torch.allclose(grad, marginal) == (kind == "posterior")


def test_reader_loss_uses_the_given_prior_and_knows_its_kinds(cells):
    c = cells()
    prior = torch.full_like(c.scores, 0.1).log()
    G = (c.logp * c.answer_mask[:, None]).sum(-1)
    torch.testing.assert_close(reader_loss(*c.args(), log_prior_BK=prior), -0.1 * G.sum(-1))
    r = posterior(*c.args(), log_prior_BK=prior)
    torch.testing.assert_close(reader_loss(*c.args(), log_prior_BK=prior, kind="posterior"), -(r * G).sum(-1))
    assert reader_loss(*c.args(), kind="none").tolist() == [0, 0, 0]
    with pytest.raises(UserError, match="did you mean 'prior'"):
        reader_loss(*c.args(), kind="prio")
