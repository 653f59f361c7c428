"""Which of a run's rows lost their passage when documents were changed: their labels count for nothing from then on."""

from __future__ import annotations

from ds_rag.config import BUILTIN
from ds_rag.data.bad_rows import Reading
from ds_rag.data.data_settings import columns_of, read_given_corpus
from ds_rag.data.formats import read_rows
from ds_rag.data.lost_labels import lost_labels, lost_note, rows_by_id
from ds_rag.run.open_saved import Saved
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError


def say_lost_rows(saved: Saved, console: Console) -> None:
    """A warning that names rows of the run, whose labelled passages the corpus of this call does not have. Nothing
    where the rows cannot be read any more."""
    data = saved.config.data
    named = {"--train_data": data.train_data, "--eval_data": data.eval_data}
    for flag, path in named.items():
        if not path or path == BUILTIN:
            continue
        try:
            corpus, by_id = read_given_corpus(data, flag, Reading(skip=True)), rows_by_id(path, flag)
            rows = [] if by_id else read_rows(path, columns_of(data), flag, False, False, Reading(skip=True), None)
        except (OSError, UserError):  # the rows are not those of this call: indexing needs none
            continue
        if lost := lost_labels([*by_id, *rows], corpus):
            labelled = len(by_id) + sum(bool(row.positives) for row in rows)
            console.say(f"warning: {flag}: {lost_note(lost, labelled)}", "yellow")
