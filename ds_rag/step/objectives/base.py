"""What every objective is: which cells the generator reads, which terms are minimised, and their gradients.

All of it works on the small tensors (scores, token log-probabilities), detached from both models; what comes out
is the gradient each engine's backward starts from.
With `--pool world` every rank computes the whole pool's loss on the same small tensors, and sends the gradients of its
own embeddings and cells on; the factor `world` below is right for both pools.

Shape legend: B queries, N passages of the pool, K candidates, C cells, A target tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple

import torch

from ds_rag.config import ObjectiveConfig
from ds_rag.config.objectives import OBJECTIVES, ObjectiveSpec
from ds_rag.data.batch import Batch, CellList
from ds_rag.data.prompt import Prompt
from ds_rag.losses import entropy, infonce, infonce_columns, log_prior
from ds_rag.runtime.errors import choose
from ds_rag.step.candidates import list_candidates, not_pushed_down

Counts = dict[str, float]


@dataclass
class Micro:
    """What an objective sees of one micro-batch.

    batch: the rows. scores_BN: the retriever's scores over the pool, divided by the temperature. candidates_BK: int64
    columns of the pool. cells, logp_CA: what the generator has read, and the log-probability of each target token in
    nats; None where the objective reads nothing.
    """

    batch: Batch
    scores_BN: torch.Tensor
    candidates_BK: torch.Tensor
    cells: CellList | None = None
    logp_CA: torch.Tensor | None = None


class Term(NamedTuple):
    """A part of the loss: a 0-d sum over the micro-batch in nats, the unit that the sum is a mean over (a key of
    `Objective.count`), and a weight."""

    total: torch.Tensor
    unit: str
    weight: float = 1.0


@dataclass
class Differentiated:
    """The objective's gradients of one micro-batch, and its share of the step's values.

    d_scores_BN, d_logp_CA: the gradients on `Micro.scores_BN` and `Micro.logp_CA`. loss, sums: they add up over
    micro-batches and ranks.
    """

    d_scores_BN: torch.Tensor
    d_logp_CA: torch.Tensor | None
    loss: float
    sums: Counts


class Objective(ABC):
    """An objective. One of its own gives at least `name` and `terms`; the families are in the files beside.

    config: the settings, those under `--objective` in `--help`. world: ranks of the run.
    Raises UserError for settings that contradict each other (`check`).
    """

    name: str = ""  # its key in OBJECTIVES
    unit: str = "queries"  # what the mean of its own term is over

    def __init__(self, config: ObjectiveConfig | None = None, world: int = 1):
        self.config, self.world = config or ObjectiveConfig(objective=self.name), world
        self.spec: ObjectiveSpec = choose(OBJECTIVES, self.name, "--objective")
        self.check()

    @property
    def needs_generator(self) -> bool:
        return self.spec.needs_generator

    @property
    def generator_learns(self) -> bool:
        return self.spec.trains_generator(self.config.reader_loss)

    def check(self) -> None:  # noqa: B027 (most have nothing to check)
        """Raises UserError where settings contradict each other; called before any work is done."""

    def cells(self, batch: Batch, candidates_BK: torch.Tensor, prompt: Prompt) -> CellList:
        """What the generator reads: each query with each candidate, the answer as its target."""
        return list_candidates(batch, candidates_BK, prompt)

    def cells_ahead(self, batch: Batch, prompt: Prompt) -> CellList | None:
        """The same where it is known before there are scores; None where it is not."""
        return None

    @abstractmethod
    def terms(self, micro: Micro) -> Mapping[str, Term]:
        """The terms of the loss by name. May use all that `micro` holds; gradients reach its scores and
        log-probabilities."""

    def statistics(self, micro: Micro) -> Counts:
        """Values that are logged, summed over queries; names that end in `entropy` become means over queries."""
        return {"prior_entropy": float(entropy(log_prior(micro.scores_BN).exp()).sum())}

    def count(self, batch: Batch, cells: CellList | None) -> Counts:
        """What means are taken over, in this micro-batch. cells: `cells_ahead`."""
        return {
            "queries": float(len(batch.rows)),
            "answer_tokens": float(sum(len(a) for a in batch.answer_ids)),
            "all_tokens": 0.0,
            "pairs": float(batch.positive_BN.sum()),
        }

    def counts(self, batches: Sequence[Batch], cells: Sequence[CellList | None]) -> Counts:
        """`count` over micro-batches; summed over ranks it covers the optimizer step."""
        total: Counts = {}
        for batch, ahead in zip(batches, cells, strict=True):
            for unit, value in self.count(batch, ahead).items():
                total[unit] = total.get(unit, 0.0) + value * (1.0 / batch.copies)  # of a batch that all ranks hold
        return total

    def values(self, micro: Micro, totals: Counts) -> dict[str, torch.Tensor]:
        """The terms as 0-d tensors. Each is `world * local sum / the step's total`, because the engines average
        gradients over ranks: summed over micro-batches and averaged over ranks they are means over the step."""
        terms = dict(self.terms(micro))
        if weight := self.config.contrastive_weight:
            terms["contrastive"] = Term(self.contrastive(micro), "pairs", weight)
        return {
            name: term.weight * (term.total * (self.world / max(1.0, totals[term.unit])))
            for name, term in terms.items()
        }

    def contrastive(self, micro: Micro) -> torch.Tensor:
        """InfoNCE summed over labelled pairs; symmetric: half over rows (passages of a query), half over columns."""
        masks = micro.batch.positive_BN, not_pushed_down(micro.batch)
        rows = infonce(micro.scores_BN, *masks).sum()
        if not self.config.contrastive_symmetric:
            return rows
        return (rows + infonce_columns(micro.scores_BN, *masks).sum()) / 2

    def differentiate(self, micro: Micro, totals: Counts) -> Differentiated:
        """The gradients on the scores and on the log-probabilities. totals: `counts` of the whole optimizer step.

        Each term's gradient on the scores is taken by itself, so that its fraction can be logged.
        """
        scores_BN = micro.scores_BN.detach().requires_grad_()
        logp_CA = None if micro.logp_CA is None else micro.logp_CA.detach().requires_grad_()
        leaf = Micro(micro.batch, scores_BN, micro.candidates_BK, micro.cells, logp_CA)
        leaves = [scores_BN] + ([logp_CA] if logp_CA is not None else [])
        values, norms, gradients = self.values(leaf, totals), {}, [torch.zeros_like(x) for x in leaves]
        for name, value in values.items():
            found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
            norms[name] = 0.0 if found[0] is None else float(found[0].norm())
            for total, own in zip(gradients, found, strict=True):
                if own is not None:
                    total += own
        fraction, all_norms = 1.0 / micro.batch.copies, sum(norms.values()) or 1.0
        with torch.no_grad():
            statistics = self.statistics(leaf)
        sums = {name: fraction * value for name, value in statistics.items()}
        sums |= {f"grad_share/{name}": norm / all_norms for name, norm in norms.items()}
        loss = fraction * sum(float(v.detach()) for v in values.values()) / self.world
        return Differentiated(gradients[0], gradients[1] if logp_CA is not None else None, loss, sums)


def make_objective(config: ObjectiveConfig, world: int = 1) -> Objective:
    """The objective that `config` names. Raises UserError for an unknown name and for settings that contradict."""
    module, _, name = choose(OBJECTIVES, config.objective, "--objective").made_by.partition(":")
    made: Objective = getattr(import_module(module), name)(config, world)
    return made
