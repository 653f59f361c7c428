"""What `ds-rag evaluate` leaves: a table on the console, a JSON, and beside it the results per question."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ds_rag.data.dataset import UNLABELLED
from ds_rag.evaluation.evaluator import Evaluation, Evaluator
from ds_rag.evaluation.intervals import show_interval, trust
from ds_rag.evaluation.metrics import without_repeats
from ds_rag.evaluation.per_question import RUN, TABLE, read_per_question, write_per_question
from ds_rag.evaluation.signature import facts_of_names, facts_of_split, sign
from ds_rag.index.store import hash_model
from ds_rag.models.hub_models import folder_of
from ds_rag.run.open_saved import Saved, WithoutRetriever
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_file, check_json, in_its_folder, is_stream, write_json

KEYS = ("retrieval", "setting")  # of the JSON, by which it is known again
BLOCKS = {"retrieval", "answers", "without_labels"}  # whose metrics have the same names in the table of questions


def check_places(path: str | None) -> None:
    """To be called before the work, on one rank: `--json FILE` and the two files beside it. Raises UserError where
    another's file is there."""
    check_json(path, KEYS)
    stem = stem_of(path)
    if stem is None:
        return
    table, run = check_file(f"{stem}{TABLE}", "--json"), check_file(f"{stem}{RUN}", "--json")
    if table.exists():
        read_per_question(table)
    elif run.exists():
        raise UserError("--json: another file is there", found=run, expected="a name that is free, with .trec too")


def stem_of(path: str | None) -> str | None:
    """What the two files beside `--json FILE` begin with; None where nothing can be written beside it: a device, a
    pipe, a file in a folder that is not this user's."""
    if path is None or is_stream(path):
        return None
    place = Path(os.path.realpath(path))
    return str(place) if not place.exists() or in_its_folder(place) else None


def sign_result(evaluator: Evaluator, saved: Saved | WithoutRetriever, result: Evaluation) -> None:
    """Puts the signature into the result's table. On one rank: the weights' files are read."""
    if result.questions is None:
        return
    run = None if isinstance(saved, WithoutRetriever) else saved.run
    folders = {
        name: run / name if run else folder_of(getattr(saved.config.model, name), f"--{name}")
        for name, module in (("retriever", evaluator.retriever), ("generator", evaluator.generator))
        if module is not None
    }
    hashes = {name: hash_model(folder) for name, folder in folders.items()}
    seed = saved.config.optim.seed if run else None
    facts = evaluator.facts() | facts_of_split(saved.config.data) | facts_of_names(saved.config)
    result.questions.signature = sign(facts, hashes, seed)


def write_and_show(
    path: str | None,
    figures: dict[str, dict[str, float]],
    result: Evaluation,
    setting: dict[str, Any],
    console: Console,
) -> None:
    """On one rank. figures: block -> metric -> mean; blocks of controls are called answers_NAME."""
    beside = trust(result.questions) if result.questions is not None else {"n": {}, "intervals": {}, "signature": {}}
    rows = []
    for block, values in figures.items():
        for name in without_repeats(values):
            value = values[name]
            key = name if block in BLOCKS else f"{block.removeprefix('answers_')}/{name}"
            ends, count = beside["intervals"].get(key), beside["n"].get(key, "-")
            labelled = result.retrieval.get(name.replace("answer_in_top", "hit")) if block == "without_labels" else None
            rows.append([block, name, f"{value:.3f}", show_interval(ends), str(count), show(labelled)])
    title = f"{setting['queries']} queries against {setting['passages']} passages"
    titles = ["part", "metric", "value", "95 % interval", "n", "with labels"]
    shown_to = 6 if any(row[5] for row in rows) else 5  # without labels there is nothing to stand beside
    console.table(title, titles[:shown_to], [row[:shown_to] for row in rows])
    if beside["signature"]:
        console.say(f"signature  {beside['signature']['line']}")
    if not result.retrieval:
        console.say(f"note: {UNLABELLED}", style="yellow")
    write_json(path, {**figures, "setting": setting, **beside})
    if (stem := stem_of(path)) is not None and result.questions is not None:
        table, run = write_per_question(result.questions, stem)
        console.say(f"each question is in {table}, the run for trec_eval in {run}")


def show(labelled: float | None) -> str:
    """hit@k, beside answer_in_top@k."""
    return "" if labelled is None else f"{labelled:.3f}"
