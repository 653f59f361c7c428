"""The columns of other toolkits, the flags, and what is said where no column fits."""

from __future__ import annotations

from typing import Any

import pytest

from ds_rag.data.bad_rows import Reading
from ds_rag.data.formats import Columns, Row, read_corpus, read_rows
from ds_rag.runtime.errors import UserError

ALIASES = {
    "DALM": {"Abstract": "p", "Question": "q", "Answer": "a"},
    "Tevatron": {
        "query_id": 7,
        "query": "q",
        "answers": ["a"],
        "positive_passages": [{"docid": "1", "title": "t", "text": "p"}],
        "negative_passages": [{"docid": "2", "title": "", "text": "n"}],
    },
    "sentence-transformers": {"anchor": "q", "positive": "p", "negative": "n", "answer": "a"},
    "DPR": {
        "question": "q",
        "answers": ["a"],
        "positive_ctxs": [{"title": "t", "text": "p", "score": 1.5}],
        "negative_ctxs": [{"title": "", "text": "random"}],
        "hard_negative_ctxs": [{"title": "", "text": "n"}],
    },
    "FlagEmbedding": {"query": "q", "pos": ["p"], "neg": ["n"], "answer": "a"},
    "FiD": {"question": "q", "answers": ["a"], "ctxs": [{"title": None, "text": "c"}]},
    "SQuAD": {"question": "q", "context": "p", "answers": {"text": ["a", "a"], "answer_start": [3, 9]}},
    "struct of lists": {"query": "q", "answer": "a", "passages": {"title": ["t", ""], "text": ["c", "d"]}},
    "loose spelling": {"QUERY": "q", "Answer ": "a", "Positive-Passages": ["p"]},
}
PARTS = {
    "Tevatron": (("t p",), (), ("n",)),
    "sentence-transformers": (("p",), (), ("n",)),
    "DPR": (("t p",), (), ("n",)),
    "FlagEmbedding": (("p",), (), ("n",)),
    "FiD": ((), ("c",), ()),
    "struct of lists": ((), ("t c", "d"), ()),
}


@pytest.mark.parametrize("toolkit", ALIASES)
def test_names_of_other_toolkits(toolkit: str, files: Any) -> None:
    path = files.jsonl("rows.jsonl", [ALIASES[toolkit]])
    id_ = "7" if toolkit == "Tevatron" else "row-1"
    positives, passages, negatives = PARTS.get(toolkit, (("p",), (), ()))
    assert read_rows(path) == [Row(id_, "q", ("a",), positives, passages, negatives, f"{path}:1")]


def test_a_flag_overrides_the_names(files: Any) -> None:
    fields = {"query": "old", "q2": "q", "Reply": "a", "good": "p", "mixed": ["c"], "bad": ["n"], "key": "k"}
    path = files.jsonl("r.jsonl", [fields])
    columns = Columns(query="Q2", answer="reply", positives="good", passages="mixed", negatives="bad", id="key")
    assert read_rows(path, columns) == [Row("k", "q", ("a",), ("p",), ("c",), ("n",), f"{path}:1")]
    # What a flag takes for one role is not guessed for another.
    path = files.put("pairs.csv", "query,answer\nwho,the text that answers\n")
    assert "no column for the answers" in files.error(path, Columns(positives="answer"))
    assert read_rows(path, Columns(positives="answer"), need_answers=False)[0].answers == ()


@pytest.mark.parametrize(
    ("header", "columns", "words"),
    [
        ("query,question,answer,passage", {}, ["can be the query", "'query', 'question'", "--query_column"]),
        (
            "query,answer,answers,passage",
            {},
            ["can be the answers", "'answer', 'answers'", "--answer_column"],
        ),
        ("query,answer,passage,positive", {}, ["'passage', 'positive'", "--positive_column"]),
        ("query,answer,passages,ctxs", {}, ["'passages', 'ctxs'", "--passages_column"]),
        ("query,answer,passage,neg,negatives", {}, ["'neg', 'negatives'", "--negatives_column"]),
        ("query,answer,passage,id,_id", {}, ["can be the id", "'id', '_id'", "--id_column"]),
        (
            "qurey,answer,passage",
            {},
            ["no column for the query", "'qurey', 'answer'", "did you mean 'qurey'", "question"],
        ),
        (
            "query,anwser,passage",
            {},
            ["no column for the answers", "did you mean 'anwser'", "--answer_column"],
        ),
        (
            "query,answer,pasage",
            {},
            [
                "neither labelled nor unlabelled passages",
                "'pasage'",
                "--positive_column or --passages_column",
            ],
        ),
        (
            "query,answer,passage",
            {"query": "qery"},
            ["no column 'qery'", "did you mean --query_column 'query'"],
        ),
        ("query,answer,passage", {"negatives": "zz"}, ["no column 'zz'", "--negatives_column names"]),
    ],
)
def test_column_errors(header: str, columns: dict, words: list[str], files: Any) -> None:
    path = files.put("rows.csv", f"{header}\n{','.join('abcdef'[: header.count(',') + 1])}\n")
    message = files.error(path, Columns(**columns), flag="--eval_data")
    assert message.startswith(f"--eval_data: {path}: ")
    for word in (*words, "found:", "expected:", "to fix:"):
        assert word in message


@pytest.mark.parametrize("name", ["negative_{}", "negative{}", "neg_{}", "Hard-Negative-{}"])
def test_numbered_columns_are_one_role(name: str, files: Any) -> None:
    """negative_1 ... negative_n of sentence-transformers, by number; a row may have fewer; the same for positives and
    answers. Where a flag names the column, it is that one alone."""
    numbers = [10, 2, 1]
    row = {"anchor": "q", "positive": "p", "answer": "a"} | {name.format(n): f"n{n}" for n in numbers}
    path, reading = files.csv("r.csv", [row, row | {"anchor": "r", name.format(2): ""}]), Reading()
    assert [r.negatives for r in read_rows(path, reading=reading)] == [("n1", "n2", "n10"), ("n1", "n10")]
    assert reading.notices == []
    chosen = read_rows(path, Columns(negatives=name.format(2)), reading=reading)[0]
    assert chosen.negatives == ("n2",) and name.format(10) in reading.notices[0]
    more = {"query": "q", "positive": "p", "positive_1": "p1", "answer_1": "a", "answer_2": "b", "negative": "n"}
    (row,) = read_rows(files.jsonl("m.jsonl", [more | {"negative_1": "m"}]))
    assert (row.positives, row.answers, row.negatives) == (("p", "p1"), ("a", "b"), ("n", "m"))


def test_passages_of_a_number_are_not_guessed_to_be_labelled(files: Any) -> None:
    reading = Reading()
    rows = [{"query": "q", "answer": "a", "positive": "p", "passage_1": "x", "url": "u"}]
    (row,) = read_rows(files.jsonl("r.jsonl", rows), reading=reading)
    assert row.passages == () and "columns that are not used: 'passage_1', 'url'" in reading.notices[0]


@pytest.mark.parametrize("name", ["prompt", "instruction", "Query Prompt", "score", "neg_scores"])
def test_columns_that_would_change_the_meaning_are_named_loudly(name: str, files: Any) -> None:
    reading = Reading()
    read_rows(files.jsonl("r.jsonl", [{"query": "q", "answer": "a", "positive": "p", name: "x"}]), reading=reading)
    (notice,) = reading.notices
    assert notice.startswith("warning: --train_data: ") and f"not used: '{name}'; '{name}': " in notice


def test_columns_of_a_corpus_and_of_queries_that_are_not_used_are_named(files: Any) -> None:
    reading = Reading()
    read_corpus(files.jsonl("c.jsonl", [{"id": "1", "text": "t", "url": "u"}]), reading=reading)
    assert "columns that are not used: 'url'" in reading.notices[0]
    path, reading = files.beir("b", files.rows(5)), Reading()
    queries = (path / "queries.jsonl").read_text().replace('"text"', '"instruction": "do", "text"')
    (path / "queries.jsonl").write_text(queries)
    read_rows(path, reading=reading)
    (notice,) = reading.notices
    assert notice.startswith("warning: ") and "not used: 'instruction'" in notice


LABELS = [
    ([1, 0], (("p",), ("n",))),
    ([True, False], (("p",), ("n",))),
    (["1", "0"], (("p",), ("n",))),
    (["true", "FALSE"], (("p",), ("n",))),
    ([1.0, -1], (("p",), ("n",))),
    ([0, 0], ((), ("p", "n"))),
]


@pytest.mark.parametrize(("labels", "wanted"), LABELS)
@pytest.mark.parametrize("shape", ["pairs", "pairs in csv", "lists"])
def test_labels_of_pairs(labels: list, wanted: tuple, shape: str, files: Any) -> None:
    """Label 0 makes a negative of that query; the pairs of a query are one row, wherever they stand."""
    fields = {"query": "q", "answer": "a"}
    pairs = [fields | {"passage": text, "label": label} for text, label in zip("pn", labels, strict=True)]
    pairs.insert(1, {"query": "other", "answer": "b", "passage": "p", "label": labels[0]})
    if shape == "lists":
        path = files.jsonl("r.jsonl", [fields | {"passages": ["p", "n"], "labels": labels}])
    else:
        path = files.jsonl("r.jsonl", pairs) if shape == "pairs" else files.csv("r.csv", pairs)
    row = read_rows(path, flag="--eval_data")[0]
    assert (row.positives, row.negatives) == wanted and row.passages == () and row.judged
    if not wanted[0]:
        with pytest.raises(UserError, match="no query has a relevant passage"):
            read_rows(path)
    elif shape != "lists":
        assert [r.query for r in read_rows(path)] == ["q", "other"]


def test_grades_and_what_is_no_label(files: Any) -> None:
    fields = {"query": "q", "answer": "a"}
    graded = [fields | {"passage": text, "label": label} for text, label in (("x", 3), ("y", 1), ("z", 0), ("x", 3))]
    (row,) = read_rows(files.jsonl("r.jsonl", graded))
    assert (row.positives, row.grades, row.negatives) == (("x", "y"), (3, 1), ("z",))
    for label, words in ((0.4, "float 0.4, expected 0 (not relevant), 1"), (None, "NoneType"), ("maybe", "maybe")):
        path = files.jsonl("r.jsonl", [*graded, fields | {"passage": "w", "label": label}])
        assert f"{path}:5: 'label' is " in files.error(path) and words in files.error(path)
    path = files.jsonl("r.jsonl", [*graded, fields | {"passage": "x", "label": 0}])
    assert ":5: 'label' is 0 here and 3 in another row of this query" in files.error(path)
    path = files.jsonl("r.jsonl", [fields | {"passages": ["x", "y"], "labels": [1]}])
    assert "has 1 values for 2 passages" in files.error(path)
    reading = Reading()  # classes of something else
    (row,) = read_rows(files.jsonl("r.jsonl", [fields | {"passage": "x", "label": "sports"}]), reading=reading)
    assert row.positives == ("x",) and not row.judged
    assert reading.notices[0].startswith("warning: ") and "not used: 'label'; 'label': only whole" in reading.notices[0]


@pytest.mark.parametrize("name", ["label", "is_selected", "Is Relevant", "is_positive", "relevant"])
def test_other_names_of_a_label(name: str, files: Any) -> None:
    rows = [{"query": "q", "answer": "a", "passages": ["p", "n"], name: [1, 0]}]
    (row,) = read_rows(files.jsonl("r.jsonl", rows))
    assert (row.positives, row.passages, row.negatives) == (("p",), (), ("n",))


def test_ids_of_queries_repeat_and_ids_of_rows_do_not(files: Any) -> None:
    for name in ("qid", "query_id", "question_id"):
        rows = [{name: 7, "query": "q", "answer": "a", "passage": text} for text in ("x", "y", "x")]
        reading = Reading()
        read = read_rows(files.jsonl("r.jsonl", rows), reading=reading)
        assert [(row.id, row.positives) for row in read] == [("7", ("x",)), ("7-2", ("y",))]
        assert "1 repeated rows" in reading.notices[0]
        both = [row | {"id": n} for n, row in enumerate(rows)]
        assert [row.id for row in read_rows(files.jsonl("r.jsonl", both))] == ["0", "1", "2"]
        path = files.jsonl("r.jsonl", rows)
        assert "without --id_column" in files.error(path, Columns(id=name))


@pytest.mark.parametrize("values", [["MS-12", "MS-13"], [12, 13], [["a1", "b2"], ["c3"]]])
@pytest.mark.parametrize("name", ["passage_id", "docid", "positive_ids"])
def test_a_column_of_ids_is_not_taken_for_passages(name: str, values: list, files: Any) -> None:
    path = files.jsonl("r.jsonl", [{"query": "q", "answer": "a", name: value} for value in values])
    message = files.error(path, Columns(positives=name))
    assert f"'{name}' holds ids of passages" in message and "BEIR folder" in message
    assert f"did you mean '{name}'" not in files.error(path), "nor offered"
