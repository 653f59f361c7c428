"""`ds-rag score`: fills the store of a frozen generator's scores ahead of a training run with the same flags.

It builds what that run would build, and stops where its first step would begin. So the scores are in the folder in
which the run looks for them, and of the pairs that it will ask for: each row with its own passages, or with those that
the index finds for it by the retriever as it is now.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ds_rag.config import RunConfig
from ds_rag.config.objectives import CANDIDATES
from ds_rag.evaluation.evaluator import Evaluator
from ds_rag.run.assemble import Parts, assemble
from ds_rag.run.index_refresh import IndexStage
from ds_rag.run.teacher import reader_of, row_pairs
from ds_rag.runtime import collectives
from ds_rag.runtime.console import Console, duration
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_file, check_place, writing
from ds_rag.step.cached_scoring import CachedScoring, score_missing, stored_scores
from ds_rag.step.pair_scores import PairScores


def main(config: RunConfig, out: str | None = None, overwrite: bool = False) -> int:
    """Runs the command. Several ranks split the passages; rank 0 prints and writes. out: where the scored rows go."""
    assert config.scoring.teacher_cache
    place = check_place(config.scoring.teacher_cache, "--teacher_cache")
    if out is not None and collectives.rank() == 0:
        check_file(out, "--out", overwrite)
    device = collectives.start(config.run.collective_timeout)
    console = Console(speaks=collectives.rank() == 0)
    folder = Path(collectives.from_first(scratch_in(place)))
    try:
        parts = assemble(config, console, folder, device)
        lines = scored(parts, config, folder, console)
        if out is not None and collectives.rank() == 0:
            with writing(Path(out), overwrite) as stream:
                stream.writelines(json.dumps(line) + "\n" for line in lines)
            console.say(f"{len(parts.loader.rows):,} rows with scores in {out}: --train_data {out} --teacher scores")
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


def scored(parts: Parts, config: RunConfig, folder: Path, console: Console) -> Iterator[dict[str, Any]]:
    """Scores every row with every passage that it brings, and prints how many were new. Returns the rows with their
    scores, as `scored_rows`."""
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
    reader = reader_of(parts)
    new = score_missing(reader, pairs, scoring.store, console)
    seconds = duration(time.monotonic() - began)
    console.say(f"{new:,} of {len(pairs):,} pairs scored in {seconds}, the others were stored")
    console.say(f"{len(scoring.store):,} scores in {scoring.store.folder}")
    return scored_rows(parts, stored_scores(reader, pairs, scoring.store))


def scored_rows(parts: Parts, scores: PairScores) -> Iterator[dict[str, Any]]:
    """Each row as an object for `--train_data`: `passages`, all that it brings; `teacher_scores`, the log-probability
    of the first answer given each, in nats; `teacher_tokens`, the number of that answer's tokens. scores: of all rows'
    pairs, row by row."""
    begin, texts = 0, parts.data.texts
    for n, row in enumerate(parts.loader.rows):
        passages = parts.loader.passages_of(n)
        of_row = slice(begin, begin := begin + len(passages))
        written = {
            "id": row.id,
            "query": row.query,
            "answers": list(row.answers),
            "positives": [texts[p] for p in row.positives],
            "negatives": [texts[p] for p in row.negatives],
            "passages": [texts[p] for p in passages],
            "teacher_scores": scores.sums_P[of_row].tolist(),
            "teacher_tokens": int(scores.counts_P[of_row].max(initial=0)),
            **row.origin._asdict(),
        }
        yield {name: value for name, value in written.items() if value or name == "teacher_tokens"}
