"""Objectives over the candidates: one loss for each query, from its K scores and K x T log-probabilities.

Shape legend: B queries, N passages of the pool, K candidates, T answer tokens.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from ds_rag.config import ObjectiveConfig
from ds_rag.config.objectives import GIVEN
from ds_rag.losses import (
    Temper,
    entropy,
    log_prior,
    passage_gains,
    passes_gate,
    posterior,
    reader_loss,
    temper_of,
)
from ds_rag.step.candidates import not_pushed_down
from ds_rag.step.objectives.base import Counts, Micro, Objective, Term


@dataclass
class Candidates:
    """The tensors that such a loss takes.

    scores_BK: the retriever's scores. logp_BKT: log-probability in nats of each answer token given each candidate.
    answer_mask_BT: bool, True at the answer's tokens. prior_BK: with `--prior pool` the log prior over the pool at the
    candidates, else None. passes_B: bool, False for queries that the gate lets teach nothing; None: there is no gate.
    mask_BK: bool, False where a query has fewer candidates than K; None: all have K.
    """

    scores_BK: torch.Tensor
    logp_BKT: torch.Tensor
    answer_mask_BT: torch.Tensor
    prior_BK: torch.Tensor | None
    passes_B: torch.Tensor | None = None
    mask_BK: torch.Tensor | None = None

    def gated(self, loss_B: torch.Tensor) -> torch.Tensor:
        """`loss_B` with weight 0 for queries that do not pass the gate."""
        return loss_B if self.passes_B is None else torch.where(self.passes_B, loss_B, 0.0)

    @property
    def args(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.scores_BK, self.logp_BKT, self.answer_mask_BT

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for a loss: its log prior and its mask, where there are any."""
        given = {"log_prior_BK": self.prior_BK, "candidate_mask_BK": self.mask_BK}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def counts_B(self) -> torch.Tensor:
        """(B,) number of candidates, at least 1."""
        full_BK = torch.ones_like(self.scores_BK) if self.mask_BK is None else self.mask_BK.to(self.scores_BK)
        return full_BK.sum(-1).clamp(min=1)


def temper_from(config: ObjectiveConfig) -> Temper:
    """`--answer_exponent`, or that of `--answer_logprob` where it is not given, and `--answer_weight`."""
    exponent = config.answer_exponent
    named = temper_of(config.answer_logprob).exponent
    return Temper(named if exponent is None else exponent, config.answer_weight)


class OverCandidates(Objective):
    """Base class: a new objective defines `loss`. The reader loss is added if the table of objectives says so."""

    @property
    def temper(self) -> Temper:
        """How an answer's log-probability is made from its tokens'. Scores in the rows are weighted already."""
        return Temper() if self.spec.reads == GIVEN else temper_from(self.config)

    @abstractmethod
    def loss(self, x: Candidates) -> torch.Tensor:
        """(B,) losses in nats. Their sum is divided by the step's count of `unit`."""

    def terms(self, micro: Micro) -> dict[str, Term]:
        x = self.candidates(micro)
        terms = {self.name: Term(x.gated(self.loss(x)).sum(), self.unit)}
        if self.spec.reader_loss and self.config.reader_loss != "none":
            loss_B = reader_loss(*x.args, **x.options, kind=self.config.reader_loss, answer_logprob=self.temper)
            terms["reader"] = Term(x.gated(loss_B).sum(), "queries")
        return terms

    def candidates(self, micro: Micro) -> Candidates:
        B, K = micro.candidates_BK.shape
        scores_BK = micro.scores_BN.gather(1, micro.candidates_BK)
        prior_BK = None
        if self.config.prior == "pool":
            mask_BN = not_pushed_down(micro.batch, micro.candidates_BK)
            prior_BK = log_prior(micro.scores_BN, mask_BN).gather(1, micro.candidates_BK)
        if self.spec.reads == GIVEN:
            return self.given(micro, scores_BK, prior_BK)
        assert micro.logp_CA is not None, "the generator has read nothing"
        mask_BT = micro.batch.answer_mask_BT.to(micro.scores_BN.device)
        logp_BKT = micro.logp_CA.view(B, K, -1)
        return Candidates(scores_BK, logp_BKT, mask_BT, prior_BK, self.passes(logp_BKT, mask_BT, micro.without_B))

    def given(self, micro: Micro, scores_BK: torch.Tensor, prior_BK: torch.Tensor | None) -> Candidates:
        """The same from scores in the rows: each is `--answer_weight` times an answer of one token. The gate compares
        them as they are."""
        assert micro.batch.teacher_BN is not None, "the rows have no scores"
        teacher_BK = micro.batch.teacher_BN.gather(1, micro.candidates_BK).to(scores_BK)
        mask_BK, one_BT = ~teacher_BK.isnan(), torch.ones_like(scores_BK[:, :1], dtype=torch.bool)
        passes_B = self.passes(teacher_BK.nan_to_num(nan=-torch.inf)[:, :, None], one_BT, None)
        logp_BKT = self.config.answer_weight * teacher_BK[:, :, None]
        return Candidates(scores_BK, logp_BKT, one_BT, prior_BK, passes_B, mask_BK)

    @property
    def reads_without_passage(self) -> bool:
        return self.config.gate_gain is not None

    def passes(
        self, logp_BKT: torch.Tensor, answer_mask_BT: torch.Tensor, without_B: torch.Tensor | None
    ) -> torch.Tensor | None:
        """(B,) bool: which queries pass `--gate_gain` and `--gate_margin`; None where neither is set."""
        gain, margin = self.config.gate_gain, self.config.gate_margin
        if gain is None and margin is None:
            return None
        assert gain is None or without_B is not None, "no scores without a passage"
        return passes_gate(passage_gains(logp_BKT, answer_mask_BT, without_B), gain, margin)

    def statistics(self, micro: Micro) -> Counts:
        """Entropies in nats of the prior, the posterior and the uniform distribution over the candidates; under a gate
        the number of queries that do not pass."""
        x = self.candidates(micro)
        after = posterior(*x.args, **x.options, answer_logprob=self.temper)
        gated = {} if x.passes_B is None else {"gated_queries": float((~x.passes_B).sum())}
        return gated | {
            "prior_entropy": float(entropy(log_prior(x.scores_BK, x.mask_BK).exp()).sum()),
            "posterior_entropy": float(entropy(after).sum()),
            "uniform_entropy": float(x.counts_B.log().sum()),
        }
