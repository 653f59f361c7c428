"""Tables become systems: seeds of the same questions, folds of others; and what must not be compared."""

from __future__ import annotations

import numpy as np
import pytest

from ds_rag.evaluation.per_question import PerQuestion
from ds_rag.evaluation.seeds_and_folds import System, check_same_data, different_settings, join
from ds_rag.runtime.errors import UserError


def table(ids: str, values: list[float], seed: int | None = None, **signature: object) -> PerQuestion:
    """A question a letter; its document is its capital."""
    signed = {"seed": seed, "data_hash": f"rows {''.join(sorted(ids))}", **signature}
    details = {"page": [ord(id_) % 3 or None for id_ in ids]}
    return PerQuestion(
        [*ids], [*ids.upper()], {"f1": np.array(values), "em": np.zeros(len(ids))}, [], [], details, signed
    )


def test_seeds_have_the_same_questions_in_any_order() -> None:
    system = join("s", [table("abc", [1, 2, 3], seed=5), table("cab", [30, 10, 20], seed=4)])
    assert system.ids == ["c", "a", "b"] and system.clusters == ["C", "A", "B"] and system.seeds == 2
    assert system.figures["f1"].tolist() == [[30, 10, 20], [3, 1, 2]]  # by seed: 4, 5
    assert [s["seed"] for s in system.signatures[0]] == [4, 5]
    as_given = join("s", [table("abc", [1, 2, 3], seed=5), table("cab", [30, 10, 20])])
    assert as_given.figures["f1"].tolist() == [[1, 2, 3], [10, 20, 30]]


def test_folds_have_other_questions_and_are_joined_seed_by_seed() -> None:
    parts = [table("ab", [1, 2], 1), table("cd", [3, 4], 2), table("ba", [20, 10], 2), table("dc", [40, 30], 1)]
    system = join("s", parts)
    assert system.ids == ["a", "b", "d", "c"] and system.clusters == ["A", "B", "D", "C"]
    assert system.figures["f1"].tolist() == [[1, 2, 40, 30], [10, 20, 4, 3]]
    assert system.seeds == 2 and len(system.signatures) == 4


def test_what_is_no_system() -> None:
    for parts, message in (
        (["ab", "bc"], "overlap in part"),
        (["ab", "abc"], "overlap in part"),
        (["ab", "ab", "cd"], "different numbers of seeds"),
        ([""], "without questions"),
    ):
        with pytest.raises(UserError, match=message):
            join("s", [table(ids, [0.0] * len(ids)) for ids in parts])


def test_only_figures_of_all_tables_are_kept() -> None:
    one, other = table("ab", [1, 2]), table("cd", [3, 4])
    del other.metrics["em"]
    assert list(join("s", [one, other]).figures) == ["f1"]


def test_what_goes_together() -> None:
    assert join("s", [table("abc", [0, 0, 0])], "page").clusters == ["1", "2", None]
    assert join("s", [table("abc", [0, 0, 0])], "none").clusters == [None, None, None]
    with pytest.raises(UserError, match="unknown column"):
        join("s", [table("abc", [0, 0, 0])], "pages")


def one(name: str = "one", ids: str = "ab", **signature: object) -> System:
    return join(name, [table(ids, [0.0] * len(ids), **signature)])


def test_rows_and_corpus_must_be_the_same_question_by_question() -> None:
    folds = join("folds", [table("ab", [0, 0]), table("cd", [0, 0])])  # each fold's rows have their own hash
    assert check_same_data([folds, one(), one("other", "cd")], False) == []
    assert check_same_data([one(corpus_hash="c"), one("unsigned", data_hash=None)], False) == []
    for other, what in ((one("other", data_hash="x"), "rows"), (one("other", corpus_hash="x"), "corpus")):
        systems = [one(corpus_hash="c"), other]
        with pytest.raises(UserError, match=f"not of the same {what}"):
            check_same_data(systems, False)
        (note,) = check_same_data(systems, True)
        assert note.startswith(f"warning: {what} not the same for 2 questions")
    with pytest.raises(UserError, match="not of the same rows"):  # two seeds of one system
        check_same_data([join("s", [table("ab", [0, 0]), table("ab", [0, 0], data_hash="x")])], False)


def test_a_question_in_two_documents_is_refused() -> None:
    other = one("other")
    other.clusters[1] = None
    assert check_same_data([one(), other], False) == []
    other.clusters[1] = "X"
    with pytest.raises(UserError, match="question b lies in two documents"):
        check_same_data([one(), other], True)


def test_other_settings_are_told_and_models_may_differ() -> None:
    systems = [one(top_k=4, model_hashes={"retriever": "x"}), one("other", top_k=8, precision="float32")]
    assert different_settings(systems) == [
        "note: not the same precision: one not known, other float32",
        "note: not the same top_k: one 4, other 8",
    ]
    assert different_settings([one(top_k=4), one("other", top_k=4, seed=3)]) == []
