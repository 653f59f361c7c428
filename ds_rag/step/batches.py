"""From rows in memory to micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ds_rag.config import DataConfig
from ds_rag.data.dataset import RagData, build_table
from ds_rag.data.in_memory_rows import rows_from
from ds_rag.data.loader import BatchOptions, Loader
from ds_rag.data.token_tables import tokenize_run
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.step.joint_step import JointStep

Rows = Sequence[Mapping[str, Any]] | RagData


def load_rows(
    joint: JointStep, rows: Rows, options: BatchOptions | None = None, lengths: DataConfig | None = None
) -> Loader:
    """A loader whose `micro_batches(n)` are those of step n.

    Args:
        joint: whose models and prompt the texts are tokenised for.
        rows: dictionaries with the keys that files of rows have (`query`, `answer` or `answers`, `positive`,
            `passages`, `negatives`; see docs/data.md), or `RagData`, whose `train` are `Example`s.
        options: rows of a micro-batch, micro-batches of a step, the seed of the order. Its `pad` is the retriever's.
        lengths: the most tokens of each text for the generator, as `DataConfig` has them.

    Raises:
        UserError: rows that cannot be used, with each place; a row without a positive where the objective needs one.

    Example:
        >>> joint = ds_rag.JointStep.from_models(retriever, objective="infonce")
        >>> rows = [{"query": "who leads zor ?", "positive": "ann"}, {"query": "what grows ?", "positive": "kelp"}]
        >>> loader = ds_rag.load_rows(joint, rows, ds_rag.BatchOptions(batch=1, accumulation=2))
        >>> [batch.passages.ids_BT.shape[0] for batch in loader.micro_batches(0)]
        [1, 1]
    """
    objective = joint.objective
    data = rows if isinstance(rows, RagData) else build_table([], rows_from(rows, True, objective.needs_generator), [])
    if objective.spec.needs_positive and (bare := [n for n, row in enumerate(data.train) if not row.positives]):
        raise UserError(
            f"{objective.name} needs labelled positives",
            found=f"{len(bare)} rows without, the first is row {bare[0] + 1}",
            expected="a key `positive` or `positives`",
        )
    options = replace(options or BatchOptions(batch=8), pad=joint.retriever.tokenizer.pad_token_id)
    tokens, _ = tokenize_run(joint.retriever, joint.prompt, data, lengths or DataConfig(), Console(speaks=False))
    return Loader(data.train, tokens, options)
