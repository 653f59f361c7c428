"""The mathematics of the objectives: pure functions on small tensors that return one loss for each query.

`ds_rag/step/objectives/` builds from them the objectives that a training run can minimise.
"""

from __future__ import annotations

from ds_rag.losses.contrastive import PositiveOnly, count_pairs, infonce, infonce_columns, positive_only
from ds_rag.losses.distill import READER_LOSSES, emdr2, pdist, reader_loss, replug_lsr
from ds_rag.losses.gate import passage_gains, passes_gate
from ds_rag.losses.marginal import (
    ANSWER_LOGPROB,
    Temper,
    answer_log_prob,
    entropy,
    log_prior,
    posterior,
    rag_sequence,
    rag_token,
    temper_of,
)

__all__ = [
    "ANSWER_LOGPROB",
    "READER_LOSSES",
    "PositiveOnly",
    "Temper",
    "answer_log_prob",
    "count_pairs",
    "emdr2",
    "entropy",
    "infonce",
    "infonce_columns",
    "log_prior",
    "passage_gains",
    "passes_gate",
    "pdist",
    "positive_only",
    "posterior",
    "rag_sequence",
    "rag_token",
    "reader_loss",
    "replug_lsr",
    "temper_of",
]
