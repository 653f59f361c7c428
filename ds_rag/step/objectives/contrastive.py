"""Contrastive learning of the retriever alone, from labelled positives: Karpukhin et al. 2020, arXiv:2004.04906."""

from __future__ import annotations

from ds_rag.step.objectives.base import Micro, Objective, Term


class InfoNCE(Objective):
    """Each labelled positive against the passages of the pool that are not positives; without a generator."""

    name, unit = "infonce", "pairs"

    def terms(self, micro: Micro) -> dict[str, Term]:
        return {self.name: Term(self.contrastive(micro), self.unit)}
