"""The objectives, as pure functions on small tensors, and the table that names them.

To add one: write the function in the file of its family, add its line to `LOSSES`, and a case to its test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ds_rag.losses.contrastive import PositiveOnly, count_pairs, infonce, infonce_columns, positive_only
from ds_rag.losses.distill import READER_LOSSES, emdr2, pdist, reader_loss, replug_lsr
from ds_rag.losses.marginal import (
    ANSWER_LOGPROB,
    answer_log_prob,
    entropy,
    log_prior,
    posterior,
    rag_sequence,
    rag_token,
)


@dataclass(frozen=True)
class LossSpec:
    """What a training step has to know about an objective.

    fn: rag_sequence, rag_token, emdr2, pdist and replug_lsr are all called as
        fn(scores_BK, logp_BKT, answer_mask_BT, candidate_mask_BK=, log_prior_BK=, **options) -> loss_B;
        infonce and positive_only take the whole pool and positives, see contrastive.py.
    unit: what the sum of the loss over the whole optimizer step is divided by: queries, answer tokens, or
        pairs. (positive_only has terms of two units, all tokens and pairs; its result carries both counts.)
    trains_generator: its own gradient reaches the generator.
    needs_positive: labelled positives are required.
    needs_reader_loss: the generator learns only by a reader loss added to it.
    options: the keywords `fn` takes beyond the common ones, named as the flags are.
    """

    fn: Callable[..., Any]
    unit: Literal["query", "token", "pair"]
    trains_generator: bool
    needs_positive: bool
    needs_reader_loss: bool
    options: tuple[str, ...]
    source: str


_RAG, _ATLAS = "Lewis et al. 2020, arXiv:2005.11401", "Izacard et al. 2022, arXiv:2208.03299"
_DALM, _DPR = "the DALM toolkit, github.com/arcee-ai/DALM", "Karpukhin et al. 2020, arXiv:2004.04906"
_EMDR2, _REPLUG = "Singh et al. 2021, arXiv:2106.05346", "Shi et al. 2023, arXiv:2301.12652"

# fn, unit, trains_generator, needs_positive, needs_reader_loss, options, source
LOSSES: dict[str, LossSpec] = {
    "rag_sequence": LossSpec(rag_sequence, "query", True, False, False, ("answer_logprob",), _RAG),
    "rag_token": LossSpec(rag_token, "query", True, False, False, ("answer_logprob",), _RAG),
    "positive_only": LossSpec(positive_only, "token", True, True, False, (), _DALM),
    "infonce": LossSpec(infonce, "pair", False, True, False, (), _DPR),
    "emdr2": LossSpec(emdr2, "token", False, False, True, (), _EMDR2),
    "pdist": LossSpec(pdist, "query", False, False, True, ("target_temperature",), _ATLAS),
    "replug_lsr": LossSpec(replug_lsr, "query", False, False, True, ("target_temperature",), _REPLUG),
}

__all__ = [
    "ANSWER_LOGPROB",
    "LOSSES",
    "READER_LOSSES",
    "LossSpec",
    "PositiveOnly",
    "answer_log_prob",
    "count_pairs",
    "emdr2",
    "entropy",
    "infonce",
    "infonce_columns",
    "log_prior",
    "pdist",
    "positive_only",
    "posterior",
    "rag_sequence",
    "rag_token",
    "reader_loss",
    "replug_lsr",
]
