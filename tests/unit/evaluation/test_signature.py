"""What a signature tells apart, and what stands beside a figure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small import small_data, small_generator, small_retriever

from ds_rag.config import DataConfig, EvaluationConfig
from ds_rag.data.dataset import RagData
from ds_rag.data.prompt import Prompt
from ds_rag.evaluation.intervals import counts, intervals, show_interval, trust
from ds_rag.evaluation.per_question import PerQuestion
from ds_rag.evaluation.signature import (
    differing,
    facts_of_data,
    facts_of_settings,
    facts_of_split,
    hash_prompt,
    line,
    sign,
    unlike,
)
from ds_rag.evaluation.significance import interval


@pytest.fixture(scope="module")
def data() -> RagData:
    table = small_data()
    return replace(table, evaluation=table.train, train=[], corpus_size=len(table.texts))


def signature(data: RagData, **settings: Any) -> dict[str, Any]:
    retriever, prompt = small_retriever(), Prompt(small_generator().tokenizer)
    facts = {**facts_of_data(data), **facts_of_settings(EvaluationConfig(**settings), retriever.settings, prompt)}
    return sign({**facts, "precision": "float32 on cpu"}, {"retriever": "12" * 32, "generator": "ab" * 32}, 7)


def changed(data: RagData, what: str) -> RagData:
    rows = list(data.evaluation)
    if what in ("query", "answers", "positives", "grades"):
        new: dict[str, Any] = {"query": "who ?", "answers": ("y",), "positives": (3,), "grades": (2, 1)}
        rows[0] = replace(rows[0], **{what: new[what]})
    if what == "fewer rows":
        rows.pop()
    if what == "corpus":
        return replace(data, texts=[*data.texts, "another"], ids=[*data.ids, "x"], corpus_size=data.corpus_size + 1)
    return replace(data, evaluation=rows[::-1] if what == "order" else rows)


@pytest.mark.parametrize(
    "what", ["query", "answers", "positives", "grades", "fewer rows", "corpus", "order", "nothing"]
)
def test_other_rows_or_passages_have_other_hashes(data: RagData, what: str) -> None:
    one, other = facts_of_data(data), facts_of_data(changed(data, what))
    apart = {"corpus": ["corpus"], "order": [], "nothing": []}.get(what, ["data"])
    assert differing(one, other) == apart
    known = {"before": {"signature": one}, "after": {"signature": other}}
    assert (unlike(known) or "").endswith("other ".join(["", *apart])) and bool(unlike(known)) == bool(apart)
    assert unlike({"before": {}, "after": known["after"]}) is None, "nothing is known of an older run's figures"


def test_the_line_says_it_all(data: RagData) -> None:
    shown = line(signature(data, top_k=3, max_new_tokens=9))
    for part in (
        "ds_rag 0",
        f"({len(data.texts)} passages)",
        "cosine, Flat, top 3",
        "rag_sequence, greedy, at most 9 tokens",
    ):
        assert part in shown
    for part in ("retriever 12121212 |", "generator abababab |", "float32 on cpu", "seed 7"):
        assert part in shown
    assert "\n" not in shown and "no seed" in line(signature(data) | {"seed": None})
    assert line(signature(data, decode="top1")) != line(signature(data))


def test_other_prompts_have_other_hashes() -> None:
    tokenizer = small_generator().tokenizer
    templates = ("{passage}\nQ: {query}\nA:", "{passage}\nQ: {query}\nB:", "Q: {query}\n{passage}\nA:")
    assert len({hash_prompt(Prompt(tokenizer, template)) for template in templates}) == 3
    assert hash_prompt(Prompt(tokenizer, templates[0])) == hash_prompt(Prompt(tokenizer, templates[0]))


def test_n_and_intervals_by_document() -> None:
    """Four documents of ten like questions each say less than forty questions: the interval is wider."""
    values = np.repeat([0.0, 1.0, 1.0, 0.0], 10)
    ids = [f"q{n}" for n in range(40)]
    metrics = {"f1": values, "few": np.where(np.arange(40) < 5, 1.0, np.nan), "one": np.r_[1.0, np.full(39, np.nan)]}
    alone = PerQuestion(ids, [None] * 40, metrics)
    together = PerQuestion(ids, [f"d{n // 10}" for n in range(40)], metrics)
    assert counts(alone) == {"f1": 40, "few": 5, "one": 1}
    wide, narrow = intervals(together)["f1"], intervals(alone)["f1"]
    assert wide and narrow and wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    assert intervals(alone)["one"] is None and intervals(together)["few"] is None, "of one document nothing can be said"
    assert show_interval(None) == "-" and show_interval([0.25, 0.5]) == "0.250 to 0.500"
    assert trust(alone)["signature"] == {}


def test_a_split_is_named() -> None:
    assert facts_of_split(DataConfig()) == {}
    assert facts_of_split(DataConfig(folds=5, fold=2))["further"] == [
        "fold 2 of 5, candidates in training from the training folds"
    ]
    assert "all documents" in facts_of_split(DataConfig(folds=5, fold_corpus="all"))["further"][0]
    assert facts_of_split(DataConfig(eval_fraction=0.1))["further"] == ["0.1 of the rows held out"]
    assert facts_of_split(DataConfig(eval_fraction=0.1, eval_data="x")) == {}, "nothing is held out"


def test_without_a_retriever_words_are_compared() -> None:
    settings, retriever = EvaluationConfig(hybrid="bm25"), small_retriever().settings
    assert facts_of_settings(EvaluationConfig(), None, None)["similarity"] == "bm25"
    assert facts_of_settings(settings, retriever, None)["similarity"].endswith(" + bm25")
    assert not facts_of_settings(EvaluationConfig(), retriever, None)["similarity"].endswith("bm25")


def test_metrics_of_other_questions_have_intervals_of_their_own() -> None:
    rng = np.random.default_rng(0)
    every, some = rng.random(40), rng.random(40)
    some[::3] = np.nan
    documents: list[str | None] = [f"d{n // 4}" for n in range(40)]
    table = PerQuestion([str(n) for n in range(40)], documents, {"a": every, "b": some, "c": every / 2})
    found = intervals(table)
    for name, values in table.metrics.items():
        assert found[name] == pytest.approx(list(interval(values, documents)), abs=5e-3), name
    assert list(found) == ["a", "b", "c"] and found["b"] != found["a"] and found["c"] != found["a"]
