"""The base class of all objectives: which cells the generator reads, which terms are minimised, and their gradients.

An objective works on small tensors (scores and token log-probabilities), detached from both models. It returns the
gradients with respect to them, from which the backward pass of each engine starts.
With `--pool world` every rank computes the loss of the full pool on the same small tensors, and backpropagates the
gradients of its own embeddings and cells only; the factor `world` below is right with both values of `--pool`.

Shape legend: B queries, N passages of the pool, K candidates, C cells, A target tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import NamedTuple

import torch

from ds_rag.config import ObjectiveConfig
from ds_rag.config.objectives import CANDIDATES, OBJECTIVES, SCORES, TEACHERS, ObjectiveSpec, objectives_with
from ds_rag.data.batch import Batch, CellList
from ds_rag.data.prompt import Prompt
from ds_rag.losses import entropy, infonce, infonce_columns, log_prior
from ds_rag.runtime.errors import UserError, choose
from ds_rag.step.candidates import list_candidates, not_pushed_down

Counts = dict[str, float]


@dataclass
class Micro:
    """The input of an objective for one micro-batch.

    batch: the rows. scores_BN: the retriever's scores over the pool, divided by the temperature. candidates_BK: int64
    columns of the pool. cells: what the generator has read; logp_CA: the log-probability of each target token in nats;
    both None if the objective has no generator. without_B: the mean log-probability of each answer's tokens without a
    passage, in nats; None unless the objective asks for it (`reads_without_passage`).
    """

    batch: Batch
    scores_BN: torch.Tensor
    candidates_BK: torch.Tensor
    cells: CellList | None = None
    logp_CA: torch.Tensor | None = None
    without_B: torch.Tensor | None = None


class Term(NamedTuple):
    """One term of the loss: a 0-d sum over the micro-batch in nats, the unit by whose count in the full step the sum is
    divided (a key of `Objective.count`), and a weight."""

    total: torch.Tensor
    unit: str
    weight: float = 1.0


@dataclass
class Differentiated:
    """The objective's gradients for one micro-batch, and the micro-batch's part of the values that are logged.

    d_scores_BN, d_logp_CA: the gradients with respect to `Micro.scores_BN` and `Micro.logp_CA`. loss, sums: added up
    over micro-batches and ranks they are the values of the step.
    """

    d_scores_BN: torch.Tensor
    d_logp_CA: torch.Tensor | None
    loss: float
    sums: Counts


class Objective(ABC):
    """Base class. A new objective defines at least `name` and `terms`; the other files of this folder have examples.

    config: the settings, those of the section "objective" in `--help`. world: the number of ranks.
    Raises UserError for settings that contradict each other (see `check`).
    """

    name: str = ""  # its key in OBJECTIVES
    unit: str = "queries"  # its loss is a mean over these: a key of `count`

    def __init__(self, config: ObjectiveConfig | None = None, world: int = 1):
        self.config, self.world = config or ObjectiveConfig(objective=self.name), world
        choose(TEACHERS, self.config.teacher, "--teacher")
        self.spec: ObjectiveSpec = choose(OBJECTIVES, self.name, "--objective").under(self.config.teacher)
        self.check_teacher()
        self.check()

    @property
    def needs_generator(self) -> bool:
        return self.spec.needs_generator

    @property
    def trains_generator(self) -> bool:
        """Is the generator trained, by the objective or by a reader loss?"""
        return self.spec.trains_generator(self.config.reader_loss)

    @property
    def reads_without_passage(self) -> bool:
        """Does the generator also score each answer without a passage? (`Micro.without_B`)"""
        return False

    def check_teacher(self) -> None:
        """Raises UserError where scores in the rows do not suffice."""
        if self.config.teacher != SCORES:
            return
        if self.spec.reads == CANDIDATES:
            raise UserError(
                f"--teacher scores: {self.name} needs a log-probability of each answer token, and rows have one score",
                fix=objectives_with(one_score=True),
            )
        if self.config.gate_gain is not None:
            raise UserError(
                "--gate_gain: scores in the rows say nothing about the answer without a passage",
                fix="--gate_margin, the distance between the best two scores",
            )

    def check(self) -> None:  # noqa: B027 (most have nothing to check)
        """Raises UserError if settings contradict each other; called when the objective is made."""

    def cells(self, batch: Batch, candidates_BK: torch.Tensor, prompt: Prompt) -> CellList:
        """What the generator reads: each query with each candidate, with the answer as the target."""
        return list_candidates(batch, candidates_BK, prompt)

    def cells_ahead(self, batch: Batch, prompt: Prompt) -> CellList | None:
        """The same cells, if they can be listed before scores exist; else None."""
        return None

    @abstractmethod
    def terms(self, micro: Micro) -> Mapping[str, Term]:
        """The terms of the loss by name, as differentiable functions of `micro.scores_BN` and `micro.logp_CA`."""

    def statistics(self, micro: Micro) -> Counts:
        """Values to log, summed over queries; those whose name ends in `entropy` are logged as means over queries."""
        return {"prior_entropy": float(entropy(log_prior(micro.scores_BN).exp()).sum())}

    def count(self, batch: Batch, cells: CellList | None) -> Counts:
        """The counts of this micro-batch by unit, over which means are taken. cells: from `cells_ahead`."""
        return {
            "queries": float(len(batch.rows)),
            "answer_tokens": float(sum(len(a) for a in batch.answer_ids)),
            "all_tokens": 0.0,
            "pairs": float(batch.positive_BN.sum()),
        }

    def counts(self, batches: Sequence[Batch], cells: Sequence[CellList | None]) -> Counts:
        """`count` summed over micro-batches; the sum over ranks is then the count of the optimizer step."""
        total: Counts = {}
        for batch, ahead in zip(batches, cells, strict=True):
            for unit, value in self.count(batch, ahead).items():
                total[unit] = total.get(unit, 0.0) + value * (1.0 / batch.copies)  # all ranks may hold the same batch
        return total

    def values(self, micro: Micro, totals: Counts) -> dict[str, torch.Tensor]:
        """The weighted terms as 0-d tensors, each `weight * world * local sum / total of the step`.

        The engines average gradients over ranks, hence the factor `world`: summed over micro-batches and averaged over
        ranks, each term is a mean over the step. totals: `counts`, summed over ranks.
        """
        terms = dict(self.terms(micro))
        if weight := self.config.contrastive_weight:
            terms["contrastive"] = Term(self.contrastive(micro), "pairs", weight)
        return {
            name: term.weight * (term.total * (self.world / max(1.0, totals[term.unit])))
            for name, term in terms.items()
        }

    def contrastive(self, micro: Micro) -> torch.Tensor:
        """InfoNCE summed over labelled pairs, 0-d. With `--contrastive_symmetric` the mean of InfoNCE over rows (the
        passages of a query) and over columns (the queries of a passage)."""
        masks = micro.batch.positive_BN, not_pushed_down(micro.batch)
        rows = infonce(micro.scores_BN, *masks).sum()
        if not self.config.contrastive_symmetric:
            return rows
        return (rows + infonce_columns(micro.scores_BN, *masks).sum()) / 2

    def differentiate(self, micro: Micro, totals: Counts) -> Differentiated:
        """The gradients with respect to scores and log-probabilities. totals: `counts` of the full optimizer step.

        Each term is differentiated separately, so that the norm of its gradient on the scores can be logged as a
        fraction of the sum of these norms (`grad_share/NAME`).
        """
        scores_BN = micro.scores_BN.detach().requires_grad_()
        logp_CA = None if micro.logp_CA is None else micro.logp_CA.detach().requires_grad_()
        leaf = replace(micro, scores_BN=scores_BN, logp_CA=logp_CA)
        leaves = [scores_BN] + ([logp_CA] if logp_CA is not None else [])
        values, norms, gradients = self.values(leaf, totals), {}, [torch.zeros_like(x) for x in leaves]
        for name, value in values.items():
            found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
            norms[name] = 0.0 if found[0] is None else float(found[0].norm())
            for total, of_term in zip(gradients, found, strict=True):
                if of_term is not None:
                    total += of_term
        fraction, all_norms = 1.0 / micro.batch.copies, sum(norms.values()) or 1.0
        with torch.no_grad():
            statistics = self.statistics(leaf)
        sums = {name: fraction * value for name, value in statistics.items()}
        sums |= {f"grad_share/{name}": norm / all_norms for name, norm in norms.items()}
        loss = fraction * sum(float(v.detach()) for v in values.values()) / self.world
        return Differentiated(gradients[0], gradients[1] if logp_CA is not None else None, loss, sums)


def make_objective(config: ObjectiveConfig, world: int = 1) -> Objective:
    """The objective that `config` names. Raises UserError for an unknown name, and for settings that contradict each
    other."""
    module, _, name = choose(OBJECTIVES, config.objective, "--objective").made_by.partition(":")
    made: Objective = getattr(import_module(module), name)(config, world)
    return made
