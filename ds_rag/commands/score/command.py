"""`ds-rag score`: fills the store of a frozen generator's scores ahead of a training run with the same flags.

It builds what that run would build, and stops where its first step would begin. So the scores are in the folder in
which the run looks for them, and of the pairs that it will ask for: each row with its own passages, or with those that
the index finds for it by the retriever as it is now.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from ds_rag.config import RunConfig
from ds_rag.config.objectives import CANDIDATES
from ds_rag.evaluation.evaluator import Evaluator
from ds_rag.run.assemble import Parts, assemble
from ds_rag.run.index_refresh import IndexStage
from ds_rag.run.teacher import reader_of, row_pairs
from ds_rag.runtime import collectives
from ds_rag.runtime.console import Console, duration
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_place
from ds_rag.step.cached_scoring import CachedScoring, score_missing


def main(config: RunConfig) -> int:
    """Runs the command. Several ranks split the passages; rank 0 prints."""
    assert config.scoring.teacher_cache
    place = check_place(config.scoring.teacher_cache, "--teacher_cache")
    device = collectives.start(config.run.collective_timeout)
    console = Console(speaks=collectives.rank() == 0)
    folder = Path(collectives.from_first(scratch_in(place)))
    try:
        parts = assemble(config, console, folder, device)
        scored(parts, config, folder, console)
        collectives.barrier()
    finally:
        if collectives.rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
    collectives.stop()
    return 0


def scratch_in(place: Path) -> str:
    """A folder that all ranks see, for the files that a run would write before its first step. Of rank 0."""
    if collectives.rank() != 0:
        return ""
    place.mkdir(parents=True, exist_ok=True)
    return tempfile.mkdtemp(prefix=".scoring-", dir=place)


def scored(parts: Parts, config: RunConfig, folder: Path, console: Console) -> None:
    """Scores every row with every passage that it brings, and prints how many were new."""
    scoring = parts.joint.scoring
    if not isinstance(scoring, CachedScoring) or parts.objective.spec.reads != CANDIDATES:
        raise UserError(
            f"ds-rag score: --objective {parts.objective.name} reads no candidates with a frozen generator",
            expected="an objective in which the generator teaches, and --freeze generator",
        )
    if parts.candidates:
        plain = replace(config.evaluation, hybrid="none", rerank=0, eval_answers=False, lexical_lines=False)
        evaluator = Evaluator(parts.retriever, parts.generator, parts.prompt, parts.data, parts.eval_tokens, plain)
        index = IndexStage(parts, config.evaluation, evaluator, folder, console, needed=True)
        found = index.refresh(0, progress=True)
        parts.candidates.refresh(0, index.search, found.retriever, console)
    pairs = row_pairs(parts, range(len(parts.loader.rows)))
    began = time.monotonic()
    new = score_missing(reader_of(parts), pairs, scoring.store, console)
    seconds = duration(time.monotonic() - began)
    console.say(f"{new:,} of {len(pairs):,} pairs scored in {seconds}, the others were stored")
    console.say(f"{len(scoring.store):,} scores in {scoring.store.folder}")
