"""What a run with stored scores of its generator (`--teacher_cache`) scores ahead of its steps, and the candidates that
these scores choose."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from itertools import chain

import numpy as np

from ds_rag.config import RunConfig
from ds_rag.config.objectives import CANDIDATES
from ds_rag.models.score_store import ScoreStore
from ds_rag.run.assemble import Parts
from ds_rag.runtime import collectives, stop_signals
from ds_rag.runtime.console import Console
from ds_rag.step.cached_scoring import CachedScoring, FrozenReader, keys_of, score_missing
from ds_rag.step.pair_scores import Pair, PairTexts


def score_ahead(parts: Parts, config: RunConfig, step: int, console: Console | None = None) -> dict[str, float]:
    """Scores the pairs that the steps from `step` on are known to need: each of their rows with each passage that it
    brings, so far as the store lacks them. Up to the next refresh where that changes the passages. Cells that a step
    needs beyond these (passages of other rows, `--candidates` above a row's own) are scored in that step.

    All ranks together. console: progress. Returns `pairs`, `scored` and `seconds`; nothing where the run stores no
    scores, or its generator does not read candidates.
    """
    scoring = parts.joint.scoring
    if not isinstance(scoring, CachedScoring) or parts.objective.spec.reads != CANDIDATES:
        return {}
    stop_signals.phase("the scores of the generator")
    began, pairs = time.monotonic(), pairs_ahead(parts, step, last_step(parts, config, step))
    reader = reader_of(parts)
    found = score_missing(reader, pairs, scoring.store, console)
    if config.objective.candidates_by == "generator" and parts.loader.found_RK is not None:
        keep_best(parts, reader, scoring.store, int(config.objective.candidates))
    return {"pairs": float(len(pairs)), "scored": float(found), "seconds": time.monotonic() - began}


def last_step(parts: Parts, config: RunConfig, step: int) -> int:
    """The first step after `step` that may read other passages: that of the next index, or the end of the run."""
    if parts.candidates is None or parts.candidates.are_final:
        return parts.total_steps
    late = config.evaluation.refresh_staleness if config.evaluation.refresh_mode == "async" else 0
    due = (s for s in range(step + 1, parts.total_steps) if parts.schedule.due(s))
    return min(parts.total_steps, next(due, parts.total_steps) + late)


def pairs_ahead(parts: Parts, step: int, end: int) -> list[Pair]:
    """(row, passage) of the rows of the steps from `step` up to `end`, row by row."""
    loader = parts.loader
    if end - step >= 2 * math.ceil(loader.steps_per_epoch):  # every row is among them
        return row_pairs(parts, range(len(loader.rows)))
    return row_pairs(parts, sorted(set(chain.from_iterable(loader.rows_of(s) for s in range(step, end)))))


def row_pairs(parts: Parts, rows: Iterable[int]) -> list[Pair]:
    """Each of these rows with each passage that it brings into its micro-batch."""
    return [(row, passage) for row in rows for passage in parts.loader.passages_of(row)]


def keep_best(parts: Parts, reader: FrozenReader, store: ScoreStore, count: int) -> None:
    """Leaves in the loader's table only the `count` passages of each row that make its answer likeliest, in the order
    in which they were found. So the others are not embedded. Rows that are not scored stay as they are: they are not
    read before the next table."""
    assert parts.loader.found_RK is not None
    table_RK = parts.loader.found_RK.copy()
    for row, line in enumerate(table_RK):
        passages = line[line >= 0].tolist()
        keys = keys_of(reader, [(row, passage) for passage in passages])
        if len(passages) <= count or not all(key in store for key in keys):
            continue
        sums = np.array([store[key].sum(dtype=np.float64) for key in keys])
        kept = [passages[n] for n in sorted(np.argsort(-sums, kind="stable")[:count].tolist())]
        line[:] = kept + [-1] * (len(line) - count)
    parts.loader.offer(collectives.from_first(table_RK))  # ranks that do not see one store know other scores


def reader_of(parts: Parts) -> FrozenReader:
    tokens = parts.loader.tokens
    queries, answers, passages = tokens.generator_queries, tokens.generator_answers, tokens.generator_passages
    assert parts.generator and parts.prompt and queries and answers and passages
    return FrozenReader(parts.generator, parts.prompt, PairTexts(queries, answers, passages))


def flush_scores(parts: Parts) -> None:
    """Puts on the disk what steps have scored. Called at checkpoints and at the end of a run."""
    if isinstance(parts.joint.scoring, CachedScoring):
        parts.joint.scoring.store.flush()
