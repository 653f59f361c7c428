"""The table's claims, tested on the functions it names."""

from __future__ import annotations

import pytest
import torch

from ds_rag.losses import LOSSES, reader_loss
from ds_rag.runtime.errors import UserError, choose

NAMES = pytest.mark.parametrize("name", LOSSES)
DIAGONAL = torch.eye(3, 4, dtype=torch.bool)


def value(name: str, c, logp: torch.Tensor) -> torch.Tensor:
    """The objective on these cells as a training step would call it; the first passages are the positives."""
    spec = LOSSES[name]
    if name == "infonce":
        return spec.fn(c.scores, DIAGONAL).sum()
    if name == "positive_only":
        positive = torch.arange(3)
        return spec.fn(c.scores, positive, logp[positive, positive], torch.ones(3, 5), c.answer_mask).loss()
    return spec.fn(c.scores, logp, c.answer_mask, candidate_mask_BK=None, log_prior_BK=None).sum()


def test_the_names():
    assert list(LOSSES) == [
        "rag_sequence", "rag_token", "positive_only", "infonce", "emdr2", "pdist", "replug_lsr"
    ]  # fmt: skip
    with pytest.raises(UserError, match="did you mean 'rag_token'"):
        choose(LOSSES, "rag_tokens", "--objective")


@NAMES
def test_noise_for_the_generator_changes_the_scores_gradient_but_of_labels_alone(name, cells):
    c = cells()
    noise = -5 * torch.rand(c.logp.shape, dtype=c.logp.dtype, generator=torch.Generator().manual_seed(7))
    a, b = (torch.autograd.grad(value(name, c, logp), c.scores)[0] for logp in (c.logp, noise))
    assert a.abs().max() > 1e-3
    if name not in ("positive_only", "infonce"):
        assert (a - b).abs().max() > 1e-2
    else:
        assert torch.equal(a, b)


@NAMES
def test_the_generator_gets_a_gradient_where_the_table_says_so(name, cells):
    c, spec = cells(), LOSSES[name]
    grad = torch.autograd.grad(value(name, c, c.logp), c.logp, allow_unused=True)[0]
    assert (grad is not None) == spec.trains_generator
    if spec.needs_reader_loss:
        assert not spec.trains_generator
        assert torch.autograd.grad(reader_loss(*c.args()).sum(), c.logp)[0].abs().max() > 0


@NAMES
def test_the_options_are_keywords_with_defaults(name):
    spec = LOSSES[name]
    assert set(spec.options) <= set(spec.fn.__kwdefaults__ or {})
    assert spec.unit in {"query", "token", "pair"} and spec.source


@pytest.mark.parametrize("name", [name for name, spec in LOSSES.items() if not spec.needs_positive])
def test_units(name, cells):
    """Repeat every token: a sum over tokens doubles, a mean over them stays."""
    c, spec = cells(), LOSSES[name]
    once = spec.fn(*c.args())
    twice = spec.fn(c.scores, c.logp.repeat(1, 1, 2), c.answer_mask.repeat(1, 2))
    if name in ("rag_token", "emdr2"):
        torch.testing.assert_close(twice, 2 * once)
    elif name in ("pdist", "replug_lsr"):
        torch.testing.assert_close(twice, once)
    else:
        assert (twice > once).all()


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("infonce", "positive_only")])
def test_a_prior_made_elsewhere_goes_with_a_candidate_mask(name, cells):
    """A masked candidate is none, whatever the prior says of it: as if it were not there."""
    c = cells(B=1, K=4, seed=2)
    mask = torch.tensor([[True, False, True, True]])
    kept = mask[0].nonzero()[:, 0]
    prior = c.scores.detach().log_softmax(-1) - 0.3  # of a larger pool
    poisoned = torch.where(mask, prior, float("nan"))
    given = {"candidate_mask_BK": mask, "log_prior_BK": poisoned}
    try:
        wanted = LOSSES[name].fn(c.scores[:, kept], c.logp[:, kept], c.answer_mask, log_prior_BK=prior[:, kept])
    except UserError:  # replug_lsr is not defined there
        return
    torch.testing.assert_close(LOSSES[name].fn(*c.args(), **given), wanted)
    full = {"candidate_mask_BK": mask, "log_prior_BK": prior}
    torch.testing.assert_close(LOSSES[name].fn(*c.args(), **full), wanted)
