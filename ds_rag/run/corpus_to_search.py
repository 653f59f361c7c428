"""Which passages are searched for rows that a saved run was not trained with, where no flag says it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ds_rag.config.names import pinned_name
from ds_rag.data.formats import contains_corpus
from ds_rag.run.moved_paths import is_there
from ds_rag.run.open_saved import Saved, WithoutRetriever
from ds_rag.run.settle_names import settle_names
from ds_rag.runtime.console import Console


def choose_corpus(saved: Saved | WithoutRetriever, given: Collection[str], console: Console) -> None:
    """Rows that bring a corpus, as a BEIR folder does, are searched in it, others in the run's corpus, else in their
    own passages; the choice is said. All ranks call it together. given: the settings that the command names. Raises
    UserError where the rows are not there."""
    data, of_corpus = saved.config.data, saved.of_corpus if isinstance(saved, Saved) else {}
    if "eval_data" not in given or data.corpus:
        return
    settle_names(saved.config, console.say, ["eval_data"])
    if contains_corpus(str(data.eval_data), "--data"):
        console.say(f"passages   those of {data.eval_data}, which brings a corpus of its own")
    elif of_corpus.get("corpus") and "corpus" not in given:
        for name, value in of_corpus.items():
            setattr(data, name, value)
        if is_there(Path(str(data.corpus)).expanduser()) or pinned_name(str(data.corpus), data=True):
            console.say(f"passages   those of the run's own corpus, {data.corpus} (--corpus none: of these rows alone)")
    else:
        console.say("note: only the passages of these rows are searched; --corpus FILE names more", "yellow")
