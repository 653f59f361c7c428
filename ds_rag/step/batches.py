"""From rows in memory to micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ds_rag.config import DataConfig
from ds_rag.config.objectives import GIVEN
from ds_rag.data.dataset import RagData, build_table
from ds_rag.data.in_memory_rows import rows_from
from ds_rag.data.loader import BatchOptions, Loader
from ds_rag.data.token_tables import tokenize_run
from ds_rag.index.lexical_pairs import LexicalPairs
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.step.joint_step import JointStep

Rows = Sequence[Mapping[str, Any]] | RagData


def load_rows(
    joint: JointStep, rows: Rows, options: BatchOptions | None = None, lengths: DataConfig | None = None
) -> Loader:
    """A loader: `micro_batches(n)` returns the micro-batches of step n.

    Args:
        joint: the texts are tokenised for its models and its prompt.
        rows: dictionaries with the keys of rows in files (`query`, `answer` or `answers`, `positive`, `passages`,
            `negatives`; `teacher_scores` under `--teacher scores`; see docs/data.md), or a `RagData`, of which `train`,
            a list of `Example`s, is used.
        options: rows per micro-batch, micro-batches per step, the seed of the order. `pad` is replaced by the pad token
            of the retriever.
        lengths: its `max_..._length` fields are the maximum numbers of tokens of the texts that the generator reads;
            the retriever has limits of its own.

    Raises:
        UserError: rows that cannot be used, with the place of each; a row without a labelled positive, if the
            objective needs one.

    Example:
        >>> joint = ds_rag.JointStep.from_models(retriever, objective="infonce")
        >>> rows = [{"query": "who leads zor ?", "positive": "ann"}, {"query": "what grows ?", "positive": "kelp"}]
        >>> loader = ds_rag.load_rows(joint, rows, ds_rag.BatchOptions(batch=1, accumulation=2))
        >>> [batch.passages.ids_BT.shape[0] for batch in loader.micro_batches(0)]
        [1, 1]
    """
    objective = joint.objective
    needs = True, objective.needs_generator, objective.spec.reads == GIVEN
    data = rows if isinstance(rows, RagData) else build_table([], rows_from(rows, *needs), [])
    if objective.spec.needs_positive and (bare := [n for n, row in enumerate(data.train) if not row.positives]):
        raise UserError(
            f"{objective.name} needs labelled positives",
            found=f"{len(bare)} rows without one, the first is row {bare[0] + 1}",
            expected="a key `positive` or `positives`",
        )
    options = replace(options or BatchOptions(batch=8), pad=joint.retriever.tokenizer.pad_token_id)
    tokens, _ = tokenize_run(joint.retriever, joint.prompt, data, lengths or DataConfig(), Console(speaks=False))
    loader = Loader(data.train, tokens, options)
    if joint.retriever.reads_words:
        loader.words = LexicalPairs([row.query for row in data.train], data.texts, data.allowed)
    return loader
