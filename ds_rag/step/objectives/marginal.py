"""RAG's marginal likelihoods: Lewis et al. 2020, arXiv:2005.11401, section 2.1."""

from __future__ import annotations

import torch

from ds_rag.losses import rag_sequence, rag_token
from ds_rag.runtime.errors import UserError
from ds_rag.step.objectives.over_candidates import Candidates, OverCandidates


class RagSequence(OverCandidates):
    """`-log sum_j p(z_j | x) p(y | x, z_j)`: one passage explains the full answer; tempered by `--answer_exponent` and
    `--answer_weight`."""

    name = "rag_sequence"

    def loss(self, x: Candidates) -> torch.Tensor:
        return rag_sequence(*x.args, **x.options, answer_logprob=self.temper)


class RagToken(OverCandidates):
    """`-sum_t log sum_j p(z_j | x) p(y_t | x, z_j, y_<t)`: each token may be explained by another passage."""

    name = "rag_token"

    def check(self) -> None:
        exponent = self.config.answer_exponent
        if self.config.answer_logprob == "mean" or exponent:
            flag = f"--answer_exponent {exponent:g}" if exponent else "--answer_logprob mean"
            raise UserError(
                f"{flag}: {self.name} has no log-probability of a full answer to average",
                fix="--answer_exponent 0" if exponent else "--answer_logprob sum",
            )

    def loss(self, x: Candidates) -> torch.Tensor:
        return rag_token(*x.args, **x.options, answer_weight=self.config.answer_weight)
