"""The generator's log-probability of each answer without a passage: what a passage's gain is measured against.

Shape legend: B queries, C cells (one a query), A tokens of the longest answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from ds_rag.data.batch import Batch, CellList
from ds_rag.data.cells import list_pairs
from ds_rag.data.prompt import Prompt
from ds_rag.models.score_store import ScoreStore, cell_keys
from ds_rag.runtime import collectives
from ds_rag.step.cell_chunks import split_cells
from ds_rag.step.generator_side import ENOUGH_TOKENS, Scoring
from ds_rag.step.two_pass import TwoPass

EMPTY = np.zeros(0, np.int32)  # the prompt of an empty passage, as in a closed-book evaluation


class WithoutPassage:
    """Scores a batch's rows with the prompt of an empty passage, without dropout and without gradient.

    A frozen generator's scores are constants: each row is then read once in a run, and kept as one number; with a
    store it is read once for all runs.
    """

    def __init__(self, scoring: Scoring, prompt: Prompt, store: ScoreStore | None = None):
        self.scoring, self.prompt, self.store = scoring, prompt, store
        self.known: dict[int, float] = {}  # row number -> mean log-probability of its answer's tokens

    def score(self, batch: Batch) -> torch.Tensor:
        """(B,) float64, the mean log-probability in nats of the answer's tokens. All ranks call it together. With
        `--pool world` every rank reads its own rows only."""
        scoring = self.scoring
        if scoring.is_trained:
            self.known.clear()
        mine = batch.shares[collectives.rank()].rows if batch.shares else range(len(batch.rows))
        missing = self._not_stored(batch, [b for b in mine if batch.rows[b] not in self.known])
        if collectives.all_max({"n": len(missing)}, scoring.device)["n"]:
            self._read(batch, missing)
        mean_B = torch.zeros(len(batch.rows), dtype=torch.float64, device=scoring.device)
        for b in mine:
            mean_B[b] = self.known[batch.rows[b]]
        return collectives.add_over_ranks(mean_B) if batch.shares else mean_B

    def _cells(self, batch: Batch) -> CellList:
        return list_pairs(self.prompt, batch.query_ids, [EMPTY], batch.answer_ids, [[0]] * len(batch.rows))

    def _not_stored(self, batch: Batch, missing: list[int]) -> list[int]:
        """Adds to `known` what the store has of these rows of the batch; returns the others."""
        if self.store is None or not missing:
            return missing
        keys = cell_keys(self._cells(batch))
        for b in missing:
            if keys[b] in self.store:
                self.known[batch.rows[b]] = float(self.store[keys[b]].mean(dtype=np.float64))
        return [b for b in missing if batch.rows[b] not in self.known]

    def _read(self, batch: Batch, missing: Sequence[int]) -> None:
        """Adds these rows of the batch to `known`, and to the store. missing: possibly none, where another rank has
        some."""
        scoring, generator = self.scoring, self.scoring.generator
        cells = self._cells(batch)
        keys = cell_keys(cells)
        enough = ENOUGH_TOKENS[scoring.device.type]
        chunks = split_cells(cells, missing, len(batch.rows), enough, generator.shares_prefixes)
        chunks = scoring.equal_on_ranks(chunks)
        was, inputs = generator.training, [partial(scoring.lay_out, cells, chunk) for chunk in chunks]
        generator.eval()
        outputs = TwoPass(scoring.engines, "generator", inputs, last=False).outputs
        generator.train(was)
        for chunk, (logp_CA,) in zip(chunks, outputs, strict=True):
            for b, logp_A in zip(chunk, logp_CA.double(), strict=False):  # an empty chunk has a dummy cell
                logp_A = logp_A[: cells.target_lengths[b]]
                self.known[batch.rows[b]] = float(logp_A.mean())
                if self.store is not None:
                    self.store.add(keys[b], logp_A.float().cpu().numpy())
