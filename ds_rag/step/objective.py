"""From the configuration's words to a loss: candidates, cells, the terms of the objective and their gradients.

All of it works on the small tensors (scores, token log-probabilities), detached from both models; what comes out
is the gradient each engine's backward starts from.
With `--pool world` every rank computes the whole pool's loss on the same small tensors, and sends the gradients of its
own embeddings and cells on; the factor `world` below is right for both pools.
Shape legend: B queries, N passages of the pool, K candidates, C = B * K cells, A target tokens, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ds_rag.config import ObjectiveConfig
from ds_rag.data.batch import Batch, CellList, lengths_to_mask, list_cells
from ds_rag.data.prompt import Prompt
from ds_rag.losses import (
    LOSSES,
    LossSpec,
    entropy,
    infonce,
    infonce_columns,
    log_prior,
    positive_only,
    posterior,
    reader_loss,
)
from ds_rag.runtime import collectives
from ds_rag.runtime.errors import UserError, choose

Counts = dict[str, float]


@dataclass
class StepOutput:
    """One micro-batch's share: `loss` and `sums` add up over micro-batches and ranks to the step's values."""

    loss: float
    sums: Counts
    sign: tuple[int, int] | None = None  # of a value that is not finite, see non_finite.py


class Objective:
    """The chosen loss. `needs_generator` and `generator_learns` tell which models it moves."""

    def __init__(self, config: ObjectiveConfig, world: int = 1):
        self.config, self.world = config, world
        self.name = config.objective
        self.spec: LossSpec = choose(LOSSES, self.name, "--objective")
        self._check()
        self.needs_generator = self.name != "infonce"
        by_reader = self.spec.needs_reader_loss and config.reader_loss != "none"
        self.generator_learns = self.spec.trains_generator or by_reader

    def _check(self) -> None:
        """Choices that contradict each other. Raises UserError before any work is done."""
        c = self.config
        if self.name == "rag_token" and c.answer_logprob == "mean":
            raise UserError(
                "--answer_logprob mean: rag_token has no sum over an answer to average", fix="--answer_logprob sum"
            )
        if self.name == "replug_lsr" and c.prior == "pool":
            raise UserError(
                "--prior pool: replug_lsr is not defined on passages left unscored", fix="--prior candidates"
            )

    def counts(self, batches: Sequence[Batch], prompt: Prompt | None) -> Counts:
        """What means are taken over, in these micro-batches; summed over ranks they cover the optimizer step."""
        counts = {"queries": 0.0, "answer_tokens": 0.0, "all_tokens": 0.0, "pairs": 0.0}
        for batch in batches:
            share = 1.0 / batch.copies  # of a batch that all ranks hold
            counts["queries"] += share * len(batch.rows)
            counts["answer_tokens"] += share * sum(len(a) for a in batch.answer_ids)
            counts["pairs"] += share * float(batch.positive_BN.sum())
            if self.name == "positive_only" and prompt is not None:
                counts["all_tokens"] += share * sum(self.positive_cells(batch, prompt).target_lengths)
        return counts

    def select(self, scores_BN: torch.Tensor, batch: Batch) -> torch.Tensor:
        """(B, K) int64: labelled positives first, then the row's other passages, then positives of other rows with its
        query, then the best of the pool."""
        N = scores_BN.shape[1]
        K = N if self.config.candidates == "all" else min(N, int(self.config.candidates))
        scores = scores_BN.detach()
        span = scores.max() - scores.min() + 1
        rank_BN = batch.own_BN.float() + batch.positive_BN.float()
        if batch.also_BN is not None:
            rank_BN = rank_BN + (batch.own_BN | batch.also_BN).float()
        chosen_BK = (scores + span * rank_BN).topk(K, dim=1).indices
        if batch.shares:  # ranks of unlike hardware must not choose apart
            return collectives.from_first(chosen_BK.cpu()).to(scores.device)
        return chosen_BK

    def cells(self, batch: Batch, candidates_BK: torch.Tensor, prompt: Prompt) -> CellList:
        """What the generator reads: each query with each candidate; under positive_only with its positive."""
        if self.name == "positive_only":
            return self.positive_cells(batch, prompt)
        return list_candidates(batch, candidates_BK, prompt)

    def positive_cells(self, batch: Batch, prompt: Prompt) -> CellList:
        """Each query with its (first) positive passage; the target is the whole sequence, prompt and all, or with
        `--lm_tokens answer` the answer."""
        cells = list_candidates(batch, batch.positive_BN.float().argmax(1)[:, None], prompt)
        if self.config.lm_tokens == "all":
            sizes = [len(cells.prefixes[p]) + len(s) for p, s in zip(cells.prefix_C, cells.suffixes, strict=True)]
            cells.target_lengths = [n - 1 for n in sizes]
        return cells

    def terms(
        self,
        scores_BN: torch.Tensor,
        candidates_BK: torch.Tensor,
        cells: CellList | None,
        logp_CA: torch.Tensor | None,
        batch: Batch,
        totals: Counts,
    ) -> dict[str, torch.Tensor]:
        """The loss as named scalars. Each is `world * local sum / the step's total`, because the engines average
        gradients over ranks: summed over micro-batches and averaged over ranks they are means over the step."""
        per = {k: self.world / max(1.0, v) for k, v in totals.items()}
        terms = self._main_terms(scores_BN, candidates_BK, cells, logp_CA, batch, per)
        if self.config.contrastive_weight:
            pairs = self._infonce(scores_BN, batch) * per["pairs"]
            terms["contrastive"] = self.config.contrastive_weight * pairs
        return terms

    def _main_terms(
        self,
        scores_BN: torch.Tensor,
        candidates_BK: torch.Tensor,
        cells: CellList | None,
        logp_CA: torch.Tensor | None,
        batch: Batch,
        per: Counts,
    ) -> dict[str, torch.Tensor]:
        """The objective's own terms, with its reader loss. `per`: what a sum is multiplied by, for each unit."""
        if self.name == "infonce":
            return {"infonce": self._infonce(scores_BN, batch) * per["pairs"]}
        assert logp_CA is not None and cells is not None
        if self.name == "positive_only":
            return self._positive_only(scores_BN, cells, logp_CA, batch, per)
        unit = {"query": "queries", "token": "answer_tokens"}[self.spec.unit]
        args, common = self._arguments(scores_BN, candidates_BK, logp_CA, batch)
        options = {name: getattr(self.config, name) for name in self.spec.options}
        terms = {self.name: self.spec.fn(*args, **common, **options).sum() * per[unit]}
        if self.spec.needs_reader_loss and self.config.reader_loss != "none":
            reader = reader_loss(
                *args, **common, kind=self.config.reader_loss, answer_logprob=self.config.answer_logprob
            )
            terms["reader"] = reader.sum() * per["queries"]
        return terms

    def _infonce(self, scores_BN: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Summed over labelled pairs; symmetric: half over rows (passages of a query), half over columns."""
        masks = batch.positive_BN, no_negatives(batch)
        rows = infonce(scores_BN, *masks).sum()
        if not self.config.contrastive_symmetric:
            return rows
        return (rows + infonce_columns(scores_BN, *masks).sum()) / 2

    def _arguments(
        self, scores_BN: torch.Tensor, candidates_BK: torch.Tensor, logp_CA: torch.Tensor, batch: Batch
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """What every marginal and distillation loss takes."""
        B, K = candidates_BK.shape
        scores_BK = scores_BN.gather(1, candidates_BK)
        args = (scores_BK, logp_CA.view(B, K, -1), batch.answer_mask_BT.to(scores_BN.device))
        if self.config.prior == "pool":
            mask_BN = no_negatives(batch, candidates_BK)
            return args, {"log_prior_BK": log_prior(scores_BN, mask_BN).gather(1, candidates_BK)}
        return args, {}

    def _positive_only(
        self, scores_BN: torch.Tensor, cells: CellList, logp_BA: torch.Tensor, batch: Batch, per: Counts
    ) -> dict[str, torch.Tensor]:
        device = scores_BN.device
        answers_begin = torch.tensor(cells.target_lengths) - torch.tensor([len(a) for a in batch.answer_ids])
        token_mask_BA = lengths_to_mask(cells.target_lengths).to(device)
        answer_mask_BA = token_mask_BA & (torch.arange(token_mask_BA.shape[1]) >= answers_begin[:, None]).to(device)
        parts = positive_only(
            scores_BN,
            batch.positive_BN.float().argmax(1),
            logp_BA,
            token_mask_BA,
            answer_mask_BA,
            positive_mask_BN=batch.positive_BN,
            candidate_mask_BN=no_negatives(batch),
        )
        return {
            "lm": parts.lm_B.sum() * per["all_tokens"],
            "doc_prior": parts.doc_prior_B.sum() * per["all_tokens"],
            "infonce": (parts.rows_B + parts.columns_B).sum() / 2 * per["pairs"],
        }

    def backward(
        self,
        scores_BN: torch.Tensor,
        candidates_BK: torch.Tensor,
        cells: CellList | None,
        logp_CA: torch.Tensor | None,
        batch: Batch,
        totals: Counts,
    ) -> StepOutput:
        """Fills the gradients of what `scores_BN` was made from and of the leaf `logp_CA`.

        Each term's gradient on the scores is taken by itself, so that its share can be logged.
        """
        scores_leaf = scores_BN.detach().requires_grad_()
        leaves = [scores_leaf] + ([logp_CA] if logp_CA is not None else [])
        terms = self.terms(scores_leaf, candidates_BK, cells, logp_CA, batch, totals)
        score_norms, gradients = {}, [torch.zeros_like(leaf) for leaf in leaves]
        for name, term in terms.items():
            parts = torch.autograd.grad(term, leaves, retain_graph=True, allow_unused=True)
            score_norms[name] = 0.0 if parts[0] is None else float(parts[0].norm())
            for total, own in zip(gradients, parts, strict=True):
                if own is not None:
                    total += own
        if scores_BN.requires_grad:
            scores_BN.backward(gradients[0])
        if logp_CA is not None:
            logp_CA.grad = gradients[1]
        share = 1.0 / batch.copies
        entropies = self._statistics(scores_leaf.detach(), candidates_BK, logp_CA, batch)
        sums = {name: share * value for name, value in entropies.items()}
        whole = sum(score_norms.values()) or 1.0
        sums |= {f"grad_share/{name}": norm / whole for name, norm in score_norms.items()}
        return StepOutput(share * sum(float(t.detach()) for t in terms.values()) / self.world, sums)

    @torch.no_grad()
    def _statistics(
        self, scores_BN: torch.Tensor, candidates_BK: torch.Tensor, logp_CA: torch.Tensor | None, batch: Batch
    ) -> Counts:
        """Entropies in nats, summed over queries."""
        if logp_CA is None or self.name == "positive_only":
            return {"prior_entropy": float(entropy(log_prior(scores_BN).exp()).sum())}
        args, common = self._arguments(scores_BN, candidates_BK, logp_CA, batch)
        after = posterior(*args, **common, answer_logprob=self.config.answer_logprob)
        B, K = candidates_BK.shape
        return {
            "prior_entropy": float(entropy(log_prior(args[0]).exp()).sum()),
            "posterior_entropy": float(entropy(after).sum()),
            "uniform_entropy": B * math.log(K),
        }


def no_negatives(batch: Batch, read_BK: torch.Tensor | None = None) -> torch.Tensor | None:
    """(B, N) bool, False at positives of other rows with the same query, which a loss must not push down; None where
    there are none. read_BK: columns that are candidates all the same, because the generator reads them."""
    if batch.also_BN is None:
        return None
    mask_BN = ~batch.also_BN
    return mask_BN if read_BK is None else mask_BN.scatter(1, read_BK, True)


def list_candidates(batch: Batch, candidates_BK: torch.Tensor, prompt: Prompt) -> CellList:
    """The B * K cells of these columns, query by query; the answer is the target."""
    pairs = [(i, j) for i, row in enumerate(candidates_BK.tolist()) for j in row]
    answers = batch.answer_ids
    texts = [prompt.split(batch.passage_ids[j], batch.query_ids[i], len(answers[i])) for i, j in pairs]
    cells = list_cells(
        [prefix for prefix, _ in texts],
        [np.concatenate([rest, answers[i]]) for (i, _), (_, rest) in zip(pairs, texts, strict=True)],
        [len(answers[i]) for i, _ in pairs],
    )
    cells.query_C, cells.passage_C = [i for i, _ in pairs], [j for _, j in pairs]
    return cells
