"""What the table of objectives says of each, tested on the functions in this room."""

from __future__ import annotations

import pytest
import torch

from ds_rag import losses
from ds_rag.config.objectives import CANDIDATES, OBJECTIVES
from ds_rag.losses import reader_loss
from ds_rag.runtime.errors import UserError, choose

FUNCTIONS = {name: getattr(losses, name) for name in OBJECTIVES}
NAMES = pytest.mark.parametrize("name", OBJECTIVES)
OVER_CANDIDATES = [name for name, spec in OBJECTIVES.items() if spec.reads == CANDIDATES]
DIAGONAL = torch.eye(3, 4, dtype=torch.bool)


def value(name: str, c, logp: torch.Tensor) -> torch.Tensor:
    """The objective on these cells as a training step would call it; the first passages are the positives."""
    function = FUNCTIONS[name]
    if name == "infonce":
        return function(c.scores, DIAGONAL).sum()
    if name == "positive_only":
        positive = torch.arange(3)
        return function(c.scores, positive, logp[positive, positive], torch.ones(3, 5), c.answer_mask).loss()
    return function(c.scores, logp, c.answer_mask, candidate_mask_BK=None).sum()


def test_the_names():
    assert list(OBJECTIVES) == [
        "rag_sequence", "rag_token", "positive_only", "infonce", "emdr2", "pdist", "replug_lsr"
    ]  # fmt: skip
    with pytest.raises(UserError, match="did you mean 'rag_token'"):
        choose(OBJECTIVES, "rag_tokens", "--objective")


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
    c, spec = cells(), OBJECTIVES[name]
    grad = torch.autograd.grad(value(name, c, c.logp), c.logp, allow_unused=True)[0]
    assert (grad is not None) == spec.trains_generator("none")
    if spec.reader_loss:
        assert torch.autograd.grad(reader_loss(*c.args()).sum(), c.logp)[0].abs().max() > 0


@pytest.mark.parametrize("name", OVER_CANDIDATES)
def test_units(name, cells):
    """Repeat every token: a sum over tokens doubles, a mean over them stays."""
    c, function = cells(), FUNCTIONS[name]
    once = function(*c.args())
    twice = function(c.scores, c.logp.repeat(1, 1, 2), c.answer_mask.repeat(1, 2))
    if name in ("rag_token", "emdr2"):
        torch.testing.assert_close(twice, 2 * once)
    elif name in ("pdist", "replug_lsr"):
        torch.testing.assert_close(twice, once)
    else:
        assert (twice > once).all()


@pytest.mark.parametrize("name", [name for name in OVER_CANDIDATES if name != "replug_lsr"])
def test_a_prior_made_elsewhere_goes_with_a_candidate_mask(name, cells):
    """A masked candidate is none, whatever the prior says of it: as if it were not there."""
    c = cells(B=1, K=4, seed=2)
    mask = torch.tensor([[True, False, True, True]])
    kept = mask[0].nonzero()[:, 0]
    prior = c.scores.detach().log_softmax(-1) - 0.3  # of a larger pool
    poisoned = torch.where(mask, prior, float("nan"))
    given = {"candidate_mask_BK": mask, "log_prior_BK": poisoned}
    wanted = FUNCTIONS[name](c.scores[:, kept], c.logp[:, kept], c.answer_mask, log_prior_BK=prior[:, kept])
    torch.testing.assert_close(FUNCTIONS[name](*c.args(), **given), wanted)
    full = {"candidate_mask_BK": mask, "log_prior_BK": prior}
    torch.testing.assert_close(FUNCTIONS[name](*c.args(), **full), wanted)
