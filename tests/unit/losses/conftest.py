"""Random cells of a step: B queries, K candidates, T answer tokens, with ragged masks."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass
class Cells:
    scores: Tensor  # B, K
    logp: Tensor  # B, K, T
    answer_mask: Tensor  # B, T
    candidate_mask: Tensor  # B, K

    def args(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.scores, self.logp, self.answer_mask

    def poisoned(self) -> Cells:
        """The same cells with NaN and infinities wherever a mask is False, as fresh leaves."""
        scores, logp = self.scores.detach().clone(), self.logp.detach().clone()
        hidden = ~(self.answer_mask[:, None, :] & self.candidate_mask[:, :, None])
        scores[~self.candidate_mask], logp[hidden] = float("nan"), float("nan")
        logp[:, ::2][hidden[:, ::2]] = float("inf")
        return Cells(scores.requires_grad_(), logp.requires_grad_(), self.answer_mask, self.candidate_mask)


def make(B: int = 3, K: int = 4, T: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> Cells:
    g = torch.Generator().manual_seed(seed)
    scores = (2 * torch.randn(B, K, generator=g, dtype=torch.float64)).to(dtype)
    logp = (-3 * torch.rand(B, K, T, generator=g, dtype=torch.float64) - 0.05).to(dtype)
    length = 1 + torch.arange(B) % T  # the first answer is one token long
    candidate_mask = torch.rand(B, K, generator=g) > 0.3
    candidate_mask[:, 0] = True
    mask = torch.arange(T)[None, :] < length[:, None]
    return Cells(scores.requires_grad_(), logp.requires_grad_(), mask, candidate_mask)


@pytest.fixture
def cells():
    return make
