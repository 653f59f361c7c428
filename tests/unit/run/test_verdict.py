"""ds_rag/run/verdict.py: better, worse or not shown, what held a run back, and the next commands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ds_rag.evaluation.per_question import PerQuestion
from ds_rag.run.verdict import BETTER, NOT_KNOWN, NOT_SHOWN, WORSE, Facts, verdict

COUNT = 40


def table(right: int, documents: int = COUNT, **more: float) -> PerQuestion:
    """40 questions of `documents` documents, the first `right` of them right; further figures are constant."""
    values = {"recall@1": (np.arange(COUNT) < right).astype(float)}
    values |= {name.replace("_at_", "@"): np.full(COUNT, value) for name, value in more.items()}
    return PerQuestion([str(n) for n in range(COUNT)], [f"d{n % documents}" for n in range(COUNT)], values)


def facts(before: PerQuestion | None, after: PerQuestion | None, **more: Any) -> Facts:
    return Facts(before, after, **({"steps": 200} | more))


@pytest.mark.parametrize(
    ("before", "after", "kind"), [(8, 24, BETTER), (24, 8, WORSE), (20, 21, NOT_SHOWN), (20, 20, NOT_SHOWN)]
)
def test_the_verdict_is_that_of_a_paired_test(before: int, after: int, kind: str) -> None:
    found = verdict(facts(table(before), table(after)), "runs/one")
    assert found.kind == kind
    assert f"recall@1 {before / COUNT:.3f} -> {after / COUNT:.3f} ({(after - before) / COUNT:+.3f}" in found.lines[0]
    assert f"{COUNT} questions of {COUNT} documents" in found.lines[0]
    assert found.lines[0].startswith(kind) or kind == NOT_SHOWN
    assert not found.held_back


def test_the_same_difference_from_few_documents_is_not_shown() -> None:
    """16 more questions are right, of 40 documents or of 5."""
    assert verdict(facts(table(8), table(24)), "run").kind == BETTER
    found = verdict(facts(table(8, documents=5), table(24, documents=5)), "run")
    assert found.kind == NOT_SHOWN and "four times in five" in found.lines[0]


@pytest.mark.parametrize(("before", "after"), [(None, None), (None, table(3)), (table(3), None)])
def test_without_two_evaluations_nothing_is_claimed(before: PerQuestion | None, after: PerQuestion | None) -> None:
    found = verdict(facts(before, after), "run")
    assert found.kind == NOT_KNOWN and ("--eval_data" in found.lines[0]) == (after is None)


def test_evaluations_of_other_rows_are_not_compared() -> None:
    """As a resumed run has them: other questions, questions of other documents, the same ids of other rows."""
    other = table(24)
    other.ids = [f"new {n}" for n in range(COUNT)]
    elsewhere = table(24, documents=7)
    signed = [table(8), table(24)]
    for n, each in enumerate(signed):
        each.signature = {"data_hash": str(n)}
    for before, after in ((table(8), other), (table(8), elsewhere), signed):
        found = verdict(facts(before, after), "run")
        assert found.kind == NOT_KNOWN and "cannot be compared" in found.lines[0]


def test_rows_without_labels_are_judged_by_contained_answers() -> None:
    plain = [PerQuestion(t.ids, t.documents, {"answer_in_top@1": t.metrics["recall@1"]}) for t in (table(5), table(30))]
    found = verdict(facts(*plain), "run")
    assert found.kind == BETTER and "answer_in_top@1 0.125 -> 0.750" in found.lines[0]


def test_a_search_by_words_stands_beside_it() -> None:
    words = {"bm25/recall@1": (np.arange(COUNT) < 38).astype(float), "hybrid/recall@1": np.ones(COUNT)}
    after = table(24)
    after.metrics |= words
    said = " ".join(verdict(facts(table(8), after), "run").lines)
    assert "(BM25) has 0.950, more than the trained retriever, by more than chance" in said
    assert "both together have 1.000: --hybrid bm25" in said
    after.metrics |= {"bm25/recall@1": np.zeros(COUNT), "hybrid/recall@1": np.zeros(COUNT)}
    said = " ".join(verdict(facts(table(8), after), "run").lines)
    assert "(BM25) has 0.000, no more than the trained retriever" in said and "--hybrid" not in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"audit": "refuse"}, "the audit's verdict on the teacher is refuse"),
        ({"steps": 2, "warmup": 20}, "only 2 steps"),
        ({"steps": 2, "warmup": 20}, "in 2 of 2 steps the learning rates were still rising"),
        ({"skipped": 30}, "30 of 200 steps were skipped"),
        ({"gated": 700, "read": 1000}, "700 of 1,000 questions taught nothing"),
        ({"warned": ("idle",)}, "the generator ignores its passages"),
        ({"warned": ("peaked",)}, "--retriever_learning_rate"),
        ({"after": table(8, recall_at_10=0.25)}, "for 75% of the held-out questions no labelled passage"),
    ],
)
def test_what_held_a_run_back(more: dict[str, Any], said: str) -> None:
    given = {"before": table(8), "after": table(24)} | more
    assert said in " ".join(verdict(facts(**given), "run").held_back)


def test_a_generator_that_answers_the_same_to_everything() -> None:
    after = table(24)
    after.details = {"answer": ["The end."] * 36 + ["ann"] * 4, "answers": [[f"a{n}"] for n in range(COUNT)]}
    assert "answers 36 of 40 questions with the same words ('the end.')" in " ".join(
        verdict(facts(table(8), after), "run").held_back
    )
    after.details["answers"] = [["yes"]] * 30 + [["no"]] * 10  # the rows themselves have one answer for most
    assert not verdict(facts(table(8), after), "run").held_back


def test_the_next_commands_name_the_run() -> None:
    commands = [command for command, _ in verdict(facts(table(8), table(24), answers=True), "runs/one").next]
    assert [command.split()[:3] for command in commands] == [
        ["ds-rag", "ask", "runs/one"],
        ["ds-rag", "serve", "runs/one"],
        ["ds-rag", "errors", "runs/one"],
        ["ds-rag", "compare", "runs/one"],
    ]
    quoted = verdict(facts(table(8), table(24)), "my runs/one").next
    assert all("'my runs/one'" in command for command, _ in quoted) and len(quoted) == 3
