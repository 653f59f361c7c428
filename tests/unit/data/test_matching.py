"""Labels meet the passages that they mean: by text, with and without a title on either side, by id; and where they do
not, that is said. Texts that are ids, and no corpus or another says of what, are refused."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest

from ds_rag.config import DataConfig
from ds_rag.data.bad_rows import Reading, say_notices
from ds_rag.data.dataset import RagData, build_table, read_data
from ds_rag.data.formats import Passage, Row, read_corpus, read_rows
from ds_rag.data.matching import overlaps, words
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

CORPUS = [
    {"id": "m1", "title": "Zor", "text": "the tavern of Zor is amber"},
    {"id": "m2", "title": "Mel", "text": "the tavern of Mel is flint"},
    {"id": "m3", "title": "", "text": "nothing else"},
]
PLAIN = [{"id": d["id"], "text": d["text"]} for d in CORPUS]


def read(files: Any, corpus: list[dict], row: dict, **changes: Any) -> RagData:
    rows = files.jsonl("r.jsonl", [{"query": "q", "answer": "a"} | row])
    return build_table(
        read_corpus(files.jsonl("c.jsonl", corpus)), read_rows(rows), read_rows(rows, flag="--eval_data")
    )


BODY = "the tavern of Zor is amber"


@pytest.mark.parametrize(
    ("corpus", "positive"),
    [
        (CORPUS, BODY),
        (CORPUS, f"Zor {BODY}"),
        (CORPUS, "zor  the TAVERN of Zor\nis amber"),
        (CORPUS, "the  tavern of Zor is Amber"),
        (CORPUS, {"title": "Zor", "text": BODY}),
        (CORPUS, {"docid": "m1", "text": BODY + ", as all know"}),
        (CORPUS, {"_id": "m1", "title": "Of Zor", "text": BODY}),
        (PLAIN, {"title": "Zor", "text": BODY}),
        (PLAIN, {"id": "m1", "title": "Of Zor", "text": BODY + "."}),
        (CORPUS, f"Zor: {BODY}"),
        (CORPUS, f"ZOR | {BODY}"),
        (CORPUS, f"Zor.\n\n{BODY}"),
        ([CORPUS[0] | {"title": "", "text": f"Zor - {BODY}"}, *CORPUS[1:]], {"title": "Zor", "text": BODY}),
    ],
)
@pytest.mark.parametrize("role", ["positives", "passages", "negatives"])
def test_a_passage_of_a_row_is_that_of_the_corpus(corpus: list[dict], positive: Any, role: str, files: Any) -> None:
    row = {"positives": ["nothing else"], role: [positive]}
    data = read(files, corpus, row)
    assert data.corpus_size == len(data.texts) == 3, "it stands there once"
    example = data.train[0]
    assert (example.positives if role == "positives" else example.others) == (0,)
    assert not any("not in the corpus" in notice for notice in data.notices)


def test_what_the_corpus_has_under_several_titles_is_all_of_them(files: Any) -> None:
    twice = [*CORPUS, CORPUS[0] | {"id": "m4", "title": "Again"}]
    data = read(files, twice, {"positives": [BODY], "negatives": [f"Again {BODY}", "nothing else"]})
    example = data.train[0]
    assert example.positives == (0, 3) and example.others == example.negatives == (2,), "no passage is both"
    exact = [*twice, {"id": "m5", "title": "", "text": BODY}]
    assert read(files, exact, {"positives": [BODY]}).train[0].positives == (4,)


def test_grades_follow_the_passages_that_are_meant() -> None:
    corpus = [Passage("a", "T x", 2), Passage("b", "S x", 2), Passage("c", "y")]
    row = Row("r", "q", (), ("x", "y"), (), (), "f:1", grades=(3, 1))
    (example,) = build_table(corpus, [], [row]).evaluation
    assert example.qrels == {0: 3, 1: 3, 2: 1}


def test_another_collection_with_the_same_ids_is_another(files: Any) -> None:
    data = read(files, CORPUS, {"positives": [{"id": "m1", "text": "of something quite different"}]})
    assert data.train[0].positives == (3,) and len(data.texts) == 4


@pytest.mark.parametrize(("lost", "loud"), [(1, False), (2, True), (20, True)])
def test_labels_that_the_corpus_lacks_are_counted_loudly_from_a_tenth_on(lost: int, loud: bool) -> None:
    texts = [f"the text {chr(97 + n)}" for n in range(20)]
    corpus = [Passage(f"c{n}", text) for n, text in enumerate(texts[lost:])]
    rows = [Row(f"r{n}", f"q{n}", (), (text,), (), (), "f:1") for n, text in enumerate(texts)]
    said = build_table(corpus or [Passage("c", "other")], rows, []).notices
    assert said == [f"{'warning: ' * loud}{lost} of 20 labelled passages of training rows are not in the corpus"]
    held = build_table(corpus or [Passage("c", "other")], [], rows).notices
    assert held == [f"{'warning: ' * loud}{lost} of 20 labelled passages of evaluation rows are not in the corpus "
                    "and were added to it"]  # fmt: skip


def test_warnings_are_said_as_such() -> None:
    stream = io.StringIO()
    say_notices(["one", "warning: two"], Console(stream))
    assert stream.getvalue().split("\n")[:2] == ["note: one", "warning: two"]


@pytest.mark.parametrize("positives", [["m1", BODY], ["x-77", "y:8"], ["5f0c1"]])
@pytest.mark.parametrize("held", [False, True])
def test_ids_in_the_place_of_texts_are_refused(positives: list[str], held: bool, files: Any) -> None:
    rows = [{"query": f"q{n}", "answer": "a", "gold": p} for n, p in enumerate(positives)]
    path, good = str(files.jsonl("r.jsonl", rows)), str(files.jsonl("g.jsonl", [rows[0] | {"gold": BODY}]))
    config = DataConfig(
        train_data=good if held else path,
        eval_data=path if held else None,
        corpus=str(files.jsonl("c.jsonl", CORPUS)),
        positive_column="gold",
    )
    with pytest.raises(UserError, match="rows name their passages by id") as error:
        read_data(config, builtin=False)
    assert "BEIR folder" in error.value.fix and positives[0] in error.value.found


@pytest.mark.parametrize("gold", ["MS_12", ["d1", "d2"]])
@pytest.mark.parametrize("column", ["positive_column", "passages_column"])
def test_ids_without_a_corpus_are_refused_too(gold: Any, column: str, files: Any) -> None:
    path = files.jsonl(
        "r.jsonl", [{"query": "q", "answer": "a", "gold": gold}, {"query": "r", "answer": "a", "gold": "x-3"}]
    )
    config = DataConfig(train_data=str(path), **{column: "gold"})
    with pytest.raises(UserError, match="rows name their passages by id, and there is no corpus") as error:
        read_data(config, builtin=False)
    assert "BEIR folder" in error.value.fix
    texts = files.jsonl("c.jsonl", [{"text": text} for text in ("MS_12", "d1", "d2", "x-3")])  # codes that are texts
    assert read_data(replace(config, corpus=str(texts)), builtin=False).corpus_size == 4


@pytest.mark.parametrize("positive", ["amber", "nothing of 1999", BODY, "42 is the answer"])
def test_texts_are_not_taken_for_ids(positive: str, files: Any) -> None:
    assert read(files, CORPUS, {"positives": [positive]}).train[0].positives


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("the tavern of Zor", "Zor: The tavern of  Zor, is amber", True),
        ("passage 1", "passage 12", False),
        ("passage 1", "a passage, 1.", True),
        ("日本語", "これは日本語です", True),
        ("日本語", "英語", False),
        ("--", "the the", False),
        ("--", "--", True),
        ("a b", "b a", False),
    ],
)
def test_overlap(one: str, other: str, same: bool) -> None:
    assert overlaps(one, other) is overlaps(other, one) is same


def test_words_of_ascii_are_those_of_any_script() -> None:
    every = "".join(f"A{chr(n)}b " for n in range(128))
    assert f"é {words(every)}" == words(f"é {every}")


def test_more_rows_read_make_no_easier_corpus(files: Any) -> None:
    """Without a corpus it is the passages of all evaluation rows, however many are asked."""
    path = str(files.jsonl("r.jsonl", [{"query": f"q{n}", "answer": "a", "positive": f"the {n}"} for n in range(9)]))
    data = read_data(DataConfig(train_data=path, eval_data=path, max_train_samples=1, max_eval_samples=2), False)
    assert (len(data.train), len(data.evaluation), data.corpus_size) == (1, 2, 9)


def test_reading_says_each_thing_once() -> None:
    reading = Reading()
    for _ in range(2):
        reading.note("x")
    assert reading.notices == ["x"]
