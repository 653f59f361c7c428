"""The loss of the DALM toolkit, github.com/arcee-ai/DALM: only the labelled positive, no sum over passages.

Shape legend: B queries, A target tokens.
"""

from __future__ import annotations

import torch

from ds_rag.data.batch import Batch, CellList, lengths_to_mask
from ds_rag.data.prompt import Prompt
from ds_rag.losses import positive_only
from ds_rag.step.candidates import list_candidates, not_pushed_down
from ds_rag.step.objectives.base import Counts, Micro, Objective, Term


class PositiveOnly(Objective):
    """A language-model loss, a document prior, and InfoNCE over rows and columns. The generator reads each query with
    its (first) positive passage only."""

    name, unit = "positive_only", "all_tokens"

    def cells_ahead(self, batch: Batch, prompt: Prompt) -> CellList:
        """One cell for each query. The target is the full sequence with the prompt, or with `--lm_tokens answer` only
        the answer."""
        cells = list_candidates(batch, batch.positive_BN.float().argmax(1)[:, None], prompt)
        if self.config.lm_tokens == "all":
            sizes = [len(cells.prefixes[p]) + len(s) for p, s in zip(cells.prefix_C, cells.suffixes, strict=True)]
            cells.target_lengths = [n - 1 for n in sizes]
        return cells

    def cells(self, batch: Batch, candidates_BK: torch.Tensor, prompt: Prompt) -> CellList:
        return self.cells_ahead(batch, prompt)

    def count(self, batch: Batch, cells: CellList | None) -> Counts:
        tokens = 0 if cells is None else sum(cells.target_lengths)
        return super().count(batch, cells) | {"all_tokens": float(tokens)}

    def terms(self, micro: Micro) -> dict[str, Term]:
        assert micro.cells is not None and micro.logp_CA is not None, "the generator has read nothing"
        batch, lengths, device = micro.batch, micro.cells.target_lengths, micro.scores_BN.device
        answers_begin = torch.tensor(lengths) - torch.tensor([len(a) for a in batch.answer_ids])
        token_mask_BA = lengths_to_mask(lengths).to(device)
        answer_mask_BA = token_mask_BA & (torch.arange(token_mask_BA.shape[1]) >= answers_begin[:, None]).to(device)
        parts = positive_only(
            micro.scores_BN,
            batch.positive_BN.float().argmax(1),
            micro.logp_CA,
            token_mask_BA,
            answer_mask_BA,
            positive_mask_BN=batch.positive_BN,
            candidate_mask_BN=not_pushed_down(batch),
        )
        return {
            "lm": Term(parts.lm_B.sum(), self.unit),
            "doc_prior": Term(parts.doc_prior_B.sum(), self.unit),
            "infonce": Term((parts.rows_B + parts.columns_B).sum() / 2, "pairs"),
        }
