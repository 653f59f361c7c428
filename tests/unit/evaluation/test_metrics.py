from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from ds_rag.evaluation.metrics import (
    answer_metrics,
    answer_metrics_per_row,
    pessimistic_ranking,
    retrieval_metrics,
    retrieval_metrics_per_query,
    without_repeats,
)
from ds_rag.runtime.errors import UserError


def test_hit_at_k_is_left_out_where_it_repeats_recall_in_all_results() -> None:
    one = {"recall@1": 0.5, "hit@1": 0.5, "mrr@10": 0.5, "hybrid/recall@1": 0.7, "hybrid/hit@1": 0.7}
    assert without_repeats(one) == ["recall@1", "mrr@10", "hybrid/recall@1"]
    assert without_repeats(one, one | {"hit@1": 0.75}) == ["recall@1", "hit@1", "mrr@10", "hybrid/recall@1"]
    assert without_repeats({"hit@1": 0.5}, {}) == ["hit@1"] and without_repeats() == []


N = 40
CORPUS = [f"d{i}" for i in range(N)]


def naive(ranked: list[str], grades: dict[str, int], k: int) -> dict[str, float]:
    relevant = {d for d, grade in grades.items() if grade > 0}
    hits = [d in relevant for d in ranked[:k]]
    first = next((i for i, d in enumerate(ranked[:10]) if d in relevant), None)
    dcg = sum(grades.get(d, 0) / math.log2(i + 2) for i, d in enumerate(ranked[:10]))
    ideal = sum(grade / math.log2(i + 2) for i, grade in enumerate(sorted(grades.values(), reverse=True)[:10]))
    return {
        f"recall@{k}": sum(hits) / len(relevant),
        f"hit@{k}": float(any(hits)),
        "mrr@10": 0.0 if first is None else 1 / (first + 1),
        "ndcg@10": dcg / ideal,
    }


def world(seed: int, queries: int = 12):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(queries, N))
    qrels = []
    for _ in range(queries):
        chosen = rng.choice(N, size=rng.integers(1, 4), replace=False)
        qrels.append({CORPUS[i]: int(rng.integers(1, 3)) for i in chosen} | {"d0": 0})
    for grades in qrels:
        if not any(grades.values()):
            grades["d1"] = 1
    return scores, qrels


def top(scores: np.ndarray, k: int):
    order = np.argsort(-scores, axis=1)[:, :k]
    return [[CORPUS[i] for i in row] for row in order], np.take_along_axis(scores, order, 1)


@pytest.mark.parametrize("depth", [20, N])
def test_equals_the_formulas_where_nothing_ties(depth):
    scores, qrels = world(0)
    ids, values = top(scores, depth)
    ours = retrieval_metrics_per_query(ids, values, qrels, corpus_size=N, ks=(1, 3, 10))
    for q in range(len(qrels)):
        for k in (1, 3, 10):
            for name, expected in naive(ids[q], qrels[q], k).items():
                assert ours[name][q] == pytest.approx(expected), (q, name)
    means = retrieval_metrics(ids, values, qrels, corpus_size=N, ks=(1, 3, 10))
    assert list(means) == [
        "recall@1", "recall@3", "recall@10", "hit@1", "hit@3", "hit@10", "mrr@10", "ndcg@10"
    ]  # fmt: skip
    assert means == {name: pytest.approx(value.mean()) for name, value in ours.items()}
    assert 0 < means["recall@3"] < 1


def test_the_order_in_which_results_come_does_not_matter():
    scores, qrels = world(1)
    ids, values = top(np.round(scores, 1), 20)  # with ties
    expected = retrieval_metrics(ids, values, qrels, corpus_size=N)
    rng = np.random.default_rng(2)
    turn = [rng.permutation(20) for _ in ids]
    shuffled = [[row[i] for i in t] for row, t in zip(ids, turn, strict=True)]
    assert (
        retrieval_metrics(shuffled, [v[t] for v, t in zip(values, turn, strict=True)], qrels, corpus_size=N) == expected
    )


@pytest.mark.parametrize("constant", [0.0, 1.0, -3.5, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("depth", [1, 10, 20, N])
def test_a_constant_scorer_earns_nothing_from_any_order(constant, depth):
    rng = np.random.default_rng(0)
    for _ in range(5):
        ids = [rng.permutation(CORPUS)[:depth].tolist() for _ in range(6)]
        qrels = [{row[0]: 1} for row in ids]  # the relevant passage is listed first
        values = retrieval_metrics(ids, np.full((6, depth), constant), qrels, corpus_size=N)
        assert set(values.values()) == {0.0}


def test_a_constant_scorer_on_a_corpus_of_two_still_has_rank_two():
    values = retrieval_metrics([["a", "b"]], [[1.0, 1.0]], [{"a": 1}], corpus_size=2, ks=(1, 2))
    assert values["recall@1"] == 0 and values["recall@2"] == 1 and values["mrr@10"] == 0.5


def test_ties_go_against_the_scorer_and_lower_grades_come_first():
    ids, scores = ["best", "good", "x", "y", "z"], [2.0, 2.0, 2.0, 3.0, 1.0]
    assert pessimistic_ranking(ids, scores, {"best": 2, "good": 1}, 9) == ["y", "x", "good", "best", "z"]


def test_ties_are_relative_to_the_largest_score():
    def ranked(scores):
        return pessimistic_ranking(["a", "b", "c"], scores, {"a": 1}, 3)

    assert ranked([1000.0001, 1000.0, 0.0]) == ["b", "a", "c"]  # 1e-7 apart: the same
    assert ranked([1000.1, 1000.0, 0.0]) == ["a", "b", "c"]
    assert ranked([0.0010001, 0.0010, 0.0]) == ["a", "b", "c"]  # small numbers are no ties
    assert ranked([-1000.0, -1000.0001, -2000.0]) == ["b", "a", "c"]
    assert ranked([math.nan, 0.5, 0.1]) == ["b", "c", "a"]  # no number is the lowest


def test_the_last_retrieved_score_counts_only_when_all_were_seen():
    ids, scores, grades = [["x", "y", "a"]], [[3.0, 2.0, 1.0]], [{"a": 1}]
    assert retrieval_metrics(ids, scores, grades, corpus_size=4, ks=(3,))["recall@3"] == 0
    assert retrieval_metrics(ids, scores, grades, corpus_size=3, ks=(3,))["recall@3"] == 1
    deeper = retrieval_metrics([["x", "y", "a", "b"]], [[3.0, 2.0, 1.0, 0.5]], grades, corpus_size=9, ks=(3,))
    assert deeper["recall@3"] == 1


def test_a_query_that_found_nothing_scores_zero_and_is_counted():
    values = retrieval_metrics([[], ["a", "b"]], [[], [2.0, 1.0]], [{"a": 1}, {"a": 1}], corpus_size=5)
    assert values["recall@1"] == 0.5 and values["mrr@10"] == 0.5 and values["ndcg@10"] == 0.5


@pytest.mark.parametrize("grades", [{"a": 0}, {"a": -1}, {}])
def test_a_query_of_which_nothing_is_relevant_counts_as_one_without_hits(grades):
    """As in trec_eval; leaving it out would lift the mean."""
    values = retrieval_metrics([["a"], ["a"]], [[1.0], [1.0]], [{"a": 1}, grades], corpus_size=1)
    assert values == {name: 0.5 for name in values}


def test_answers_by_hand():
    predictions = ["The Cat!", "a red dog", "nothing", ""]
    references = [["cat"], ["red wolf", "red dog barks"], ["something else"], ["word"]]
    rows = answer_metrics_per_row(predictions, references)
    assert rows["exact_match"].tolist() == [1, 0, 0, 0]
    assert rows["f1"].tolist() == pytest.approx([1, 4 / 5, 0, 0])  # without the article: 2 of 2 and 2 of 3
    assert rows["rougeL"].tolist() == pytest.approx([2 / 3, 2 / 3, 0, 0])  # with it: 1 of 2, 2 of 3 and 2 of 3
    assert answer_metrics(predictions, references) == {k: pytest.approx(v.mean()) for k, v in rows.items()}


def test_answers_take_the_best_reference_wherever_it_stands():
    for references in (["blue", "red dog"], ["red dog", "blue"]):
        assert answer_metrics(["red dog"], [references]) == {"exact_match": 1, "f1": 1, "rougeL": 1}
    assert answer_metrics(["dog red"], [["red dog"]]) == {"exact_match": 0, "f1": 1, "rougeL": 0.5}  # order


def test_rouge_is_the_longest_common_subsequence():
    rng = np.random.default_rng(3)
    for _ in range(10):
        a, b = (rng.choice(["ka", "lo", "mi", "nu"], size=rng.integers(1, 9)).tolist() for _ in range(2))
        table = np.zeros((len(a) + 1, len(b) + 1))
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
        expected = 2 * table[-1, -1] / (len(a) + len(b))
        assert answer_metrics([" ".join(a)], [[" ".join(b)]])["rougeL"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("the the the", "--", 0),
        ("--", "--", 1),
        ("++", "--", 0),
        ("", "--", 0),
        ("", "the", 0),
        ("a", "A", 1),
        ("(A).", "A", 1),
        ("An", "A", 0),
        ("?!", "?", 0),
        ("1.5", "15", 0),
        ("-5", "5", 0),
        ("\u22125", "-5", 0),  # SQuAD's punctuation is ASCII: no credit is given that it would not give
        ("1,000", "1000", 1),
        ("5.", "5", 1),
        ("+7", "7", 1),
        ("$5", "5", 1),
        ("The Cat!", "cat", 1),
        ("nan", "NaN", 1),
    ],
)
def test_answers_that_normalisation_would_confuse_are_compared_as_they_are(prediction, reference, same):
    """Symbols, names of options, signs and points of numbers; in any place among other references."""
    for references in ([reference], ["something else", reference], [reference, "42"]):
        found = answer_metrics([prediction], [references])
        assert (found["exact_match"], found["f1"]) == (same, same), references


def test_elsewhere_exact_match_and_f1_are_squads():
    from torchmetrics.functional.text import squad

    rng = np.random.default_rng(5)
    pieces = ["the", "a", "Zor", "Via.", "x-ray", "12", "1.5", "of", "!"]
    for _ in range(40):
        one, other = (" ".join(rng.choice(pieces, size=rng.integers(2, 6))) + " end" for _ in range(2))
        truth = {"id": "0", "answers": {"text": [other], "answer_start": [0]}}
        wanted = squad({"id": "0", "prediction_text": one}, truth)
        found = answer_metrics([one], [[other]])
        assert found["f1"] == pytest.approx(float(wanted["f1"]) / 100)
        assert found["exact_match"] == float(wanted["exact_match"]) / 100


def test_answers_need_lists_of_references():
    for bad in ([], "cat"):
        with pytest.raises(UserError, match="row 0"):
            answer_metrics(["cat"], [bad])


def test_importing_the_module_is_cheap():
    heavy = ("torch", "torchmetrics", "ir_measures")
    code = f"import sys, ds_rag.evaluation.metrics; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
