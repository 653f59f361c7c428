"""Which passages are searched for rows that a saved run was not trained with, where no flag says it."""

from __future__ import annotations

from collections.abc import Collection

from ds_rag.data.formats import contains_corpus
from ds_rag.run.open_saved import Saved, WithoutRetriever
from ds_rag.run.settle_names import settle_names
from ds_rag.runtime.console import Console


def choose_corpus(saved: Saved | WithoutRetriever, given: Collection[str], console: Console) -> None:
    """Rows that bring a corpus, as a BEIR folder does, are searched in it, others in the run's corpus, else in their
    own passages; the choice is said. All ranks call it together. given: the settings that the command names. Raises
    UserError where the rows are not there."""
    data, of_corpus = saved.config.data, saved.of_corpus if isinstance(saved, Saved) else {}
    if "eval_data" not in given or "corpus" in given:
        return
    settle_names(saved.config, console.say, ["eval_data"])
    if contains_corpus(str(data.eval_data), "--data"):
        return
    if of_corpus.get("corpus"):
        for name, value in of_corpus.items():
            setattr(data, name, value)
        console.say(f"passages   those of the run's own corpus, {data.corpus} (--corpus none: of these rows alone)")
    else:
        console.say("note: only the passages of these rows are searched; --corpus FILE names more", "yellow")
