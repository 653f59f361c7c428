"""The results per question that a run leaves of its first and last evaluation, with their signatures:
RUN/before.questions.parquet, RUN/before.trec, RUN/after.questions.parquet, RUN/after.trec.

`before` is written when it was measured. `after` is of the models that are exported, and comes to its place with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ds_rag.config import RunConfig
from ds_rag.evaluation.evaluator import Evaluation, Evaluator
from ds_rag.evaluation.intervals import trust
from ds_rag.evaluation.per_question import write_per_question
from ds_rag.evaluation.signature import facts_of_names, facts_of_split, sign
from ds_rag.index.store import hash_model
from ds_rag.models.fingerprint import hash_weights
from ds_rag.models.hub_models import folder_of
from ds_rag.run.model_cards import warmed
from ds_rag.runtime import atomic_folders, collectives
from ds_rag.runtime.errors import not_written

BEFORE = "before"  # what the names of the files begin with


@dataclass(frozen=True)
class Measured:
    """An evaluation of a run, with what its signature names."""

    result: Evaluation
    evaluator: Evaluator
    config: RunConfig

    def write(self, model_hashes: Mapping[str, str], stem: Path) -> dict[str, Any]:
        """Signs the results per question and writes their two files, on one rank. Returns their `n`, `intervals`,
        `signature` and `without_labels`. Raises OSError."""
        table = self.result.questions
        assert table is not None
        facts = self.evaluator.facts() | facts_of_split(self.config.data) | facts_of_names(self.config)
        table.signature = sign(facts, model_hashes, self.config.optim.seed)
        write_per_question(table, stem)
        return {**trust(table), "without_labels": self.result.without_labels}


def write_before(measured: Measured, modules: Mapping[str, nn.Module], folder: Path) -> dict[str, Any]:
    """Writes what the evaluation before the first step found; returns what is to be known of it (`Measured.write`), on
    rank 0. All ranks together. Raises RunError on every rank where rank 0 could not write."""
    known: dict[str, Any] = {}
    if measured.result.questions is None:
        return known

    def write() -> None:
        known.update(measured.write(starting_hashes(measured.config, modules), folder / BEFORE))

    failure = atomic_folders.attempt(write) if collectives.rank() == 0 else None
    try:
        atomic_folders.agree("the results per question", failure)
    except OSError as error:
        raise not_written("the figures before training", error, folder, "free some, then the command again") from None
    return known


def starting_hashes(config: RunConfig, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Of the models before the first step: of their folders, as `ds-rag evaluate` of these has them; of the weights in
    memory where the models are new."""
    hashes = {}
    for name, module in modules.items():
        source = getattr(config.model, name)
        new = source.startswith("config:") or (name == "generator" and warmed(config))
        hashes[name] = hash_weights(module) if new else hash_model(folder_of(source, f"--{name}"))
    return hashes
