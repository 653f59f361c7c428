"""The columns of other toolkits, the flags, and what is said where no column fits."""

from __future__ import annotations

from typing import Any

import pytest

from ds_rag.data.formats import Columns, Row, read_rows

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
        ("query,answer,passage,id,qid", {}, ["can be the id", "'id', 'qid'", "--id_column"]),
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
    for word in (*words, "found:", "expected:", "to mend:"):
        assert word in message
