"""Objectives over the candidates: one loss for each query, from its K scores and K x T log-probabilities.

Shape legend: B queries, N passages of the pool, K candidates, T answer tokens.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from ds_rag.config import ObjectiveConfig
from ds_rag.losses import Temper, entropy, log_prior, posterior, reader_loss, temper_of
from ds_rag.step.candidates import not_pushed_down
from ds_rag.step.objectives.base import Counts, Micro, Objective, Term


@dataclass
class Candidates:
    """The tensors that such a loss takes.

    scores_BK: the retriever's scores. logp_BKT: log-probability in nats of each answer token given each candidate.
    answer_mask_BT: bool, True at the answer's tokens. prior_BK: with `--prior pool` the log prior over the pool at the
    candidates, else None.
    """

    scores_BK: torch.Tensor
    logp_BKT: torch.Tensor
    answer_mask_BT: torch.Tensor
    prior_BK: torch.Tensor | None

    @property
    def args(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.scores_BK, self.logp_BKT, self.answer_mask_BT

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for a loss that can take its log prior as an argument."""
        return {} if self.prior_BK is None else {"log_prior_BK": self.prior_BK}


def temper_from(config: ObjectiveConfig) -> Temper:
    """`--answer_exponent`, or that of `--answer_logprob` where it is not given, and `--answer_weight`."""
    exponent = config.answer_exponent
    named = temper_of(config.answer_logprob).exponent
    return Temper(named if exponent is None else exponent, config.answer_weight)


class OverCandidates(Objective):
    """Base class: a new objective defines `loss`. The reader loss is added if the table of objectives says so."""

    @property
    def temper(self) -> Temper:
        """How an answer's log-probability is made from its tokens'."""
        return temper_from(self.config)

    @abstractmethod
    def loss(self, x: Candidates) -> torch.Tensor:
        """(B,) losses in nats. Their sum is divided by the step's count of `unit`."""

    def terms(self, micro: Micro) -> dict[str, Term]:
        x = self.candidates(micro)
        terms = {self.name: Term(self.loss(x).sum(), self.unit)}
        if self.spec.reader_loss and self.config.reader_loss != "none":
            loss_B = reader_loss(*x.args, **x.options, kind=self.config.reader_loss, answer_logprob=self.temper)
            terms["reader"] = Term(loss_B.sum(), "queries")
        return terms

    def candidates(self, micro: Micro) -> Candidates:
        assert micro.logp_CA is not None, "the generator has read nothing"
        B, K = micro.candidates_BK.shape
        scores_BK = micro.scores_BN.gather(1, micro.candidates_BK)
        prior_BK = None
        if self.config.prior == "pool":
            mask_BN = not_pushed_down(micro.batch, micro.candidates_BK)
            prior_BK = log_prior(micro.scores_BN, mask_BN).gather(1, micro.candidates_BK)
        mask_BT = micro.batch.answer_mask_BT.to(micro.scores_BN.device)
        return Candidates(scores_BK, micro.logp_CA.view(B, K, -1), mask_BT, prior_BK)

    def statistics(self, micro: Micro) -> Counts:
        """Entropies in nats of the prior, the posterior and the uniform distribution over the candidates."""
        x = self.candidates(micro)
        after = posterior(*x.args, **x.options, answer_logprob=self.temper)
        B, K = micro.candidates_BK.shape
        return {
            "prior_entropy": float(entropy(log_prior(x.scores_BK).exp()).sum()),
            "posterior_entropy": float(entropy(after).sum()),
            "uniform_entropy": B * math.log(K),
        }
