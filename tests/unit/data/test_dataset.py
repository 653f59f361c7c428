from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest

from ds_rag.config import BUILTIN, DataConfig
from ds_rag.data.dataset import Example, assume_first, build_table, read_data, read_evaluation, tokenize
from ds_rag.data.formats import Passage, Row
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError


def row(query: str = "q", answers=("a",), positives=(), passages=(), negatives=()) -> Row:
    return Row("id", query, tuple(answers), tuple(positives), tuple(passages), tuple(negatives), "file:1")


def corpus(*texts: str) -> list[Passage]:
    return [Passage(f"c{n}", text) for n, text in enumerate(texts)]


@pytest.fixture
def write(tmp_path):
    def put(name: str, rows: list[dict]) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return str(path)

    return put


def test_the_corpus_comes_first_and_each_text_once():
    train = [row(positives=("new", "two"), passages=("one",)), row(passages=("new", "three"))]
    data = build_table(corpus("one", "two", "one"), train, [])
    assert data.texts == ["one", "two", "new", "three"]
    assert data.ids == ["c0", "c1", "row-passage-2", "row-passage-3"]
    assert data.corpus_size == 2
    assert [e.own for e in data.train] == [(2, 1, 0), (2, 3)]
    assert any("1 corpus passages repeat" in n for n in data.notices)


def test_positives_and_others_are_apart():
    data = build_table([], [row(positives=("p",), passages=("u",), negatives=("n", "u"))], [])
    example = data.train[0]
    assert [data.texts[n] for n in example.positives] == ["p"]
    assert [data.texts[n] for n in example.others] == ["u", "n"]
    assert example.own == example.positives + example.others


def test_labelled_passages_of_evaluation_join_the_corpus_with_a_notice():
    evaluation = [row(positives=("gold", "one")), row(passages=("other",))]
    data = build_table(corpus("one"), [row(passages=("train",))], evaluation)
    assert data.texts[: data.corpus_size] == ["one", "gold"]
    assert set(data.texts[data.corpus_size :]) == {"train", "other"}
    assert (
        "warning: 1 of 2 labelled passages of evaluation rows are not in the corpus and were added to it"
        in data.notices
    )
    assert data.labelled == [0]
    assert all(p < data.corpus_size for p in data.evaluation[0].positives)


def test_nothing_to_say_of_clean_data():
    assert build_table(corpus("one", "two"), [row(passages=("one",))], [row(positives=("two",))]).notices == []


def test_first_candidate_as_positive():
    assert assume_first(Example("q", ("a",), (), (4, 5, 6))) == Example("q", ("a",), (4,), (5, 6))
    for kept in (Example("q", ("a",), (3,), (4,)), Example("q", ("a",), (), ())):
        assert assume_first(kept) is kept


ROWS = [
    {"query": "one ?", "answer": "1", "passages": ["passage 1", "passage 2"]},
    {"query": "two ?", "answer": "2", "passages": ["passage 2", "passage 3"]},
]


def test_rows_make_the_corpus_where_none_is_given(write):
    data = read_data(DataConfig(train_data=write("train.jsonl", ROWS)), builtin=False)
    assert data.texts == ["passage 1", "passage 2", "passage 3"]
    assert data.corpus_size == 3
    assert [(e.query, e.answers, e.positives, e.others) for e in data.train] == [
        ("one ?", ("1",), (), (0, 1)),
        ("two ?", ("2",), (), (1, 2)),
    ]


def test_an_objective_that_needs_positives_says_so(write):
    labelled = {"query": "three ?", "answer": "3", "positives": ["passage 1"]}
    path = write("train.jsonl", [labelled | {"passages": []}, *({**r, "positives": []} for r in ROWS)])
    with pytest.raises(UserError, match="needs labelled positives") as error:
        read_data(DataConfig(train_data=path), builtin=False, need_positive=True)
    assert "2 rows" in error.value.found
    assert f"{path}:2" in error.value.found
    assert "--assume_first_positive" in error.value.fix
    taken = DataConfig(train_data=path, assume_first_positive=True)
    data = read_data(taken, builtin=False, need_positive=True)
    assert [len(e.positives) for e in data.train] == [1, 1, 1]


def test_labels_that_training_ignores(write):
    rows = [ROWS[0] | {"positive": "the gold", "negatives": ["a wrong one"]}, ROWS[1] | {"positive": "the gold"}]
    path = write("train.jsonl", rows)
    config = DataConfig(train_data=path, eval_data=path)
    with_labels, without = (read_data(replace(config, train_labels=on), builtin=False) for on in (True, False))
    assert without.texts == with_labels.texts  # the passages are still there
    assert [e.positives for e in with_labels.train] != [(), ()]
    assert [(e.positives, e.negatives, e.also) for e in without.train] == [((), (), ())] * 2
    left = [[without.texts[p] for p in e.own] for e in without.train]
    assert left == [list(row["passages"]) for row in ROWS[:2]]
    assert [e.positives for e in without.evaluation] == [e.positives for e in with_labels.evaluation]


def test_candidates_stay_where_labels_are_ignored(write):
    """Also those that a label names: else it would decide what is read."""
    both = {
        "query": "a ?",
        "answer": "x",
        "positive": "passage 1",
        "negatives": ["passage 3"],
        "passages": ["passage 1", "passage 2", "passage 3"],
    }
    labels = {"query": "b ?", "answer": "y", "passages": ["passage 1", "passage 2"], "label": [0, 1]}
    for row, kept in ((both, {"passage 1", "passage 2", "passage 3"}), (labels, {"passage 1", "passage 2"})):
        data = read_data(DataConfig(train_data=write("t.jsonl", [row]), train_labels=False), builtin=False)
        (example,) = data.train
        assert {data.texts[p] for p in example.others} == kept and not example.positives + example.negatives


def test_rows_that_have_nothing_but_labels(write):
    config = DataConfig(train_data=write("t.jsonl", [{"query": "a ?", "answer": "x", "positive": "p"}]))
    ignored = replace(config, train_labels=False)
    with pytest.raises(UserError, match="--train_labels false: rows without any candidate") as error:
        read_data(ignored, builtin=False)
    assert "1 rows" in error.value.found
    assert [e.own for e in read_data(ignored, builtin=False, from_index=True).train] == [()]


def test_a_corpus_of_its_own_and_limits(write):
    config = DataConfig(
        train_data=write("train.jsonl", ROWS),
        eval_data=write("eval.jsonl", [{"query": f"{n} ?", "answer": "x", "positive": "p9"} for n in range(3)]),
        corpus=write("corpus.jsonl", [{"_id": "x", "text": "p9"}, {"_id": "y", "text": "passage 2"}]),
        max_train_samples=1,
        max_eval_samples=2,
    )
    data = read_data(config, builtin=False)
    assert data.texts[:2] == ["p9", "passage 2"]
    assert data.ids[:2] == ["x", "y"]
    assert (data.corpus_size, len(data.train), len(data.evaluation)) == (2, 1, 2)
    alone = read_evaluation(config, builtin=False)
    assert (alone.texts, len(alone.train), len(alone.evaluation)) == (["p9", "passage 2"], 0, 2)


def test_a_beir_folder_brings_its_corpus(write, tmp_path):
    write("dev/corpus.jsonl", [{"_id": f"d{n}", "title": "", "text": f"text {n}"} for n in range(5)])
    write("dev/queries.jsonl", [{"_id": "q0", "text": "which ?"}])
    (tmp_path / "dev" / "qrels").mkdir()
    (tmp_path / "dev" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td3\t1\n")
    for read in (read_data, read_evaluation):
        config = DataConfig(train_data=write("train.jsonl", ROWS), eval_data=str(tmp_path / "dev"))
        data = read(config, builtin=False)
        assert data.ids[: data.corpus_size] == [f"d{n}" for n in range(5)]
        assert data.evaluation[0].positives == (3,)


def test_a_missing_evaluation_file_is_named_by_its_flag(tmp_path):
    config = DataConfig(eval_data=str(tmp_path / "absent.jsonl"))
    with pytest.raises(UserError, match="--data"):
        read_evaluation(config, builtin=False)


def test_the_builtin_world():
    data = read_data(DataConfig(train_data=BUILTIN, max_train_samples=10), builtin=True)
    assert (data.corpus_size, len(data.texts), len(data.train)) == (1600, 1600, 10)
    assert len(data.labelled) == len(data.evaluation) > 0
    assert all(len(e.others) == 4 and not e.positives for e in data.train)
    assert read_evaluation(DataConfig(), builtin=True).evaluation == data.evaluation


@pytest.mark.parametrize("count", [0, 1, 511, 512, 1300])
def test_texts_are_tokenised_once_in_order(count):
    rng = np.random.default_rng(0)
    texts = ["x" * int(n) for n in rng.integers(0, 9, count)]
    calls: list[int] = []

    def encode(chunk: list[str]) -> list[list[int]]:
        calls.append(len(chunk))
        return [[len(t)] * len(t) for t in chunk]

    table = tokenize(encode, texts, Console(io.StringIO()), "texts")
    assert len(table) == count == sum(calls)
    assert [table[n].tolist() for n in range(count)] == [[len(t)] * len(t) for t in texts]
    assert table.lengths.tolist() == [len(t) for t in texts]
    assert table.flat.dtype == np.int32


def test_max_eval_samples_cuts_the_built_in_rows_too():
    assert len(read_evaluation(DataConfig(max_eval_samples=5), builtin=True).evaluation) == 5


BARE = [{"query": "one ?", "answer": "1"}, {"query": "two ?", "answer": "2", "negatives": ["n1"]}]


def test_rows_of_queries_and_answers_alone_where_the_index_supplies_passages(write):
    """Only then, and only beside a corpus, which may be that of a BEIR folder."""
    corpus_file = write("corpus.jsonl", [{"_id": "x", "text": "p1"}, {"_id": "y", "text": "p2"}])
    train, held = write("train.jsonl", BARE), write("eval.jsonl", BARE[:1])
    config = DataConfig(train_data=train, eval_data=held, corpus=corpus_file)
    data = read_data(config, builtin=False, from_index=True)
    assert [(e.positives, e.others, e.negatives) for e in data.train] == [((), (), ()), ((), (2,), (2,))]
    assert (data.corpus_size, data.labelled) == (2, [])
    assert any("recall is not measured" in n for n in data.notices)
    assert len(read_evaluation(config, builtin=False, from_index=True).evaluation) == 1
    for refused in (
        lambda: read_data(config, builtin=False),
        lambda: read_data(DataConfig(train_data=train), builtin=False, from_index=True),
        lambda: read_evaluation(config, builtin=False),
    ):
        with pytest.raises(UserError, match="no column for either") as error:
            refused()
        ways = "--candidates_from index --corpus FILE" if "--train_data" in error.value.message else ": --corpus FILE"
        assert ways in error.value.fix


def test_one_bare_row_among_others_needs_the_index_too(write):
    train = write("train.jsonl", [*ROWS, BARE[0]])
    corpus_file = write("corpus.jsonl", [{"_id": "x", "text": "passage 1"}])
    with pytest.raises(UserError, match=r"train\.jsonl:3: neither labelled nor unlabelled.*--candidates_from index"):
        read_data(DataConfig(train_data=train, corpus=corpus_file), builtin=False)
    data = read_data(DataConfig(train_data=train, corpus=corpus_file), builtin=False, from_index=True)
    assert [e.own for e in data.train] == [(0, 1), (1, 2), ()]


def test_a_labelled_negative_is_no_first_candidate():
    data = build_table([], [row(passages=("u", "v"), negatives=("n",)), row(negatives=("n",))], [])
    first, bare = (assume_first(example) for example in data.train)
    assert [data.texts[p] for p in first.positives] == ["u"]
    assert [data.texts[p] for p in first.others] == ["v", "n"] and first.negatives == data.train[0].negatives
    assert bare is data.train[1] and bare.positives == ()
