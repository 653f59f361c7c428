"""Objectives in which the generator teaches the retriever; the generator is trained by `--reader_loss`."""

from __future__ import annotations

import torch

from ds_rag.losses import emdr2, pdist, replug_lsr
from ds_rag.runtime.errors import UserError
from ds_rag.step.objectives.over_candidates import Candidates, OverCandidates


class Emdr2(OverCandidates):
    """The marginal likelihood of each token, with the generator detached: Singh et al. 2021, arXiv:2106.05346."""

    name, unit = "emdr2", "answer_tokens"

    def loss(self, x: Candidates) -> torch.Tensor:
        return emdr2(*x.args, **x.options)


class PDist(OverCandidates):
    """Perplexity distillation, KL(q || p): Izacard et al. 2022, arXiv:2208.03299, section 2.2."""

    name = "pdist"

    def loss(self, x: Candidates) -> torch.Tensor:
        return pdist(*x.args, **x.options, target_temperature=self.config.target_temperature)


class ReplugLsr(OverCandidates):
    """LM-supervised retrieval, KL(p || q): Shi et al. 2023, arXiv:2301.12652, section 4."""

    name = "replug_lsr"

    def check(self) -> None:
        if self.config.prior == "pool":
            raise UserError(
                f"--prior pool: {self.name} is not defined on passages that the generator has not scored",
                fix="--prior candidates",
            )

    def loss(self, x: Candidates) -> torch.Tensor:
        return replug_lsr(*x.args, **x.options, target_temperature=self.config.target_temperature)
