"""Folds and the held-out fraction, against rules that a reader can check by eye."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ds_rag.config import DataConfig, build
from ds_rag.data.dataset import RagData, read_data, read_evaluation
from ds_rag.data.splits import (
    FOLDS,
    FRACTION,
    HELD_OUT,
    LEAST,
    Group,
    Split,
    SplitOptions,
    Unit,
    choose_held_out,
    deal,
    group_rows,
    split_of_json,
    split_rows,
    ways_to_hold_out,
)
from ds_rag.data.statistics import documents, effective_number
from ds_rag.runtime.errors import UserError

TENTH = SplitOptions(FRACTION, 2, HELD_OUT, 0.1)


def sizes_of(**sizes: int) -> dict[Group, int]:
    return {Group("document", name): size for name, size in sizes.items()}


def test_the_largest_document_first_to_the_emptiest_fold():
    folds = deal(sizes_of(a=5, b=9, c=5, d=3, e=1), 2)
    # b -> 0 (9 0), a -> 1 (9 5), c -> 1 (9 10), d -> 0 (12 10), e -> 1 (12 11)
    assert {group.name: fold for group, fold in folds.items()} == {"b": 0, "a": 1, "c": 1, "d": 0, "e": 1}
    with pytest.raises(UserError, match="--folds 6: too few documents"):
        deal(sizes_of(a=5, b=9, c=5, d=3, e=1), 6)


def test_rows_without_a_document_stay_together_by_passage_or_query():
    units = [
        Unit(None, "Who leads  Zor?", (1,)),
        Unit(None, "who leads zor?", (2,)),  # the same query
        Unit(None, "another", (2,)),  # the same passage as that
        Unit(None, "a third", (3,)),
        Unit("A", "who leads zor?", (1,)),  # a document decides alone
        Unit("B", "who leads zor?", (3,)),
    ]
    names = group_rows(units)
    assert names[0] == names[1] == names[2] == Group("query", "another")
    assert names[3:] == [Group("query", "a third"), Group("document", "A"), Group("document", "B")]
    split, folds = split_rows(units, SplitOptions(FOLDS, 2, 1))
    assert split.documents.keys() == {"A", "B"} and split.queries.keys() == {"who leads zor?", "another", "a third"}
    assert [split.known(unit) for unit in units] == folds and len(set(folds[:3])) == 1


def test_a_fraction_holds_out_whole_documents_and_never_fewer_than_the_least():
    units = [Unit(f"d{n % 30}", f"q{n}") for n in range(300)]
    split, folds = split_rows(units, TENTH)
    assert folds.count(HELD_OUT) == 30 and list(split.documents.values()).count(HELD_OUT) == 3
    _, again = split_rows(units[::-1], TENTH)
    assert again == folds[::-1]
    _, odd = split_rows([Unit(f"d{n % 9}", f"q{n}") for n in range(201)], TENTH)  # documents of 22 and 23 rows
    assert odd.count(HELD_OUT) in (22, 23)


@pytest.mark.parametrize(
    "rows,fix", [(100, "--eval_fraction 0.20, "), (41, "--eval_fraction 0.49, "), (39, "--eval_data FILE"), (1, "")]
)
def test_too_few_rows_say_what_there_is_and_what_to_do(rows, fix):
    with pytest.raises(UserError) as error:
        split_rows([Unit(f"d{n}", "q") for n in range(rows)], TENTH)
    assert f"{rows} rows, of which {round(rows / 10)} would be held out" in str(error.value)
    assert f"at least {LEAST} held-out rows: --eval_fraction 0.1 takes 200 rows" in str(error.value)
    assert str(error.value.fix).startswith(fix)
    if fix.startswith("--eval_fraction"):  # what it says works
        fraction = float(fix.split()[1].strip(","))
        assert len(choose_held_out({Group("query", str(n)): 1 for n in range(rows)}, fraction)) == LEAST


def test_one_large_document_cannot_be_divided():
    with pytest.raises(UserError, match="the rows cannot be divided"):
        choose_held_out(sizes_of(a=300, b=5), 0.1)
    assert choose_held_out(sizes_of(a=300, b=40), 0.1) == {Group("document", "b")}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (1000, ", or --eval_fraction 0.1"),
        (199, ", or --eval_fraction 0.11"),
        (40, ", or --eval_fraction 0.5"),
        (30, ""),
    ],
)
def test_the_way_to_hold_rows_out_is_one_that_works(rows: int, said: str) -> None:
    assert ways_to_hold_out(rows) == f"--eval_data FILE{said}"
    if said:
        choose_held_out({Group("query", str(n)): 1 for n in range(rows)}, float(said.split()[-1]))


def test_a_known_split_stays_and_what_is_new_is_added():
    units = [Unit(f"d{n % 12}", f"q{n}") for n in range(240)]
    for wanted in (SplitOptions(FOLDS, 3, 1), TENTH):
        split, folds = split_rows(units, wanted)
        moved = Split(wanted, {name: 1 - min(fold, 1) for name, fold in split.documents.items()}, {})
        assert split_rows(units, wanted, moved)[0].documents == moved.documents != split.documents
        more, with_new = split_rows([*units, Unit("new", "q")], wanted, split)
        assert with_new[:-1] == folds and more.documents == split.documents | {"new": with_new[-1]}
    assert with_new[-1] != HELD_OUT  # of a fraction, new rows are trained on
    before = split_of_json(json.loads(json.dumps(split.to_json())), "file")
    assert before == split


@pytest.mark.parametrize(
    "change", [{"kind": "x"}, {"documents": []}, {"documents": {"a": 2}}, {"queries": {"a": "b"}}, {"fold": None}]
)
def test_a_file_of_something_else_is_refused(change):
    good = Split(TENTH, {"a": 0}, {}).to_json()
    assert split_of_json(good, "f").documents == {"a": 0}
    with pytest.raises(UserError, match="f: not the folds of a run"):
        split_of_json(good | change, "f")


def test_effective_number():
    assert effective_number([5, 5, 5]) == 3 and effective_number([]) == 0
    assert effective_number([9, 1]) == pytest.approx(100 / 82)
    counted = {"rows with a document": 3, "documents": 2, "effective number of documents": 1.8}
    assert documents(["a", "a", None, "b"]) == counted


def put(path: Path, objects: list[dict]) -> str:
    path.write_text("".join(json.dumps(o) + "\n" for o in objects))
    return str(path)


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """60 rows of 12 documents of two windows each; each row has a negative of the next document."""
    rows = [
        {"query": f"q{n} ?", "answer": "a", "positive": f"d{n % 12} w0", "negatives": [f"d{(n + 1) % 12} w1"]}
        for n in range(60)
    ]
    corpus = [{"text": f"d{d} w{w}", "document": f"d{d}"} for d in range(12) for w in (0, 1)]
    return {
        "train_data": put(tmp_path / "r.jsonl", rows),
        "corpus": put(tmp_path / "c.jsonl", [*corpus, {"text": "x"}]),
    }


def document_of(data: RagData, numbers) -> set[str | None]:
    return {data.document_of(n) for n in numbers}


def test_training_has_the_other_folds_and_no_passage_of_the_held_out_one(files):
    asked: Counter[str] = Counter()
    for fold in range(3):
        data = read_data(DataConfig(**files, folds=3, fold=fold), builtin=False)
        assert data.split and data.corpus_size == 25  # every window is ranked
        held_out = {name for name, part in data.split.documents.items() if part == fold}
        assert {data.row_document(row) for row in data.evaluation} == held_out
        assert len(data.evaluation) == 20 and len(data.train) == 40
        asked.update(row.query for row in data.evaluation)
        assert not document_of(data, {n for row in data.train for n in row.own}) & held_out
        assert any(row.negatives for row in data.train) and not all(row.negatives for row in data.train)
        assert data.allowed is not None
        assert document_of(data, data.allowed.nonzero()[0]) == {f"d{n}" for n in range(12)} - held_out | {None}
        everything = read_data(DataConfig(**files, folds=3, fold=fold, fold_corpus="all"), builtin=False)
        assert everything.allowed is None and all(row.negatives for row in everything.train)
        only = read_evaluation(DataConfig(**files, folds=3, fold=fold), builtin=False)
        other = read_evaluation(
            DataConfig(eval_data=files["train_data"], corpus=files["corpus"], folds=3, fold=fold), builtin=False
        )
        for same in (only, other):
            assert same.evaluation == data.evaluation and same.texts[: same.corpus_size] == data.texts[:25]
            assert same.train == []
    assert len(asked) == 60 and set(asked.values()) == {1}


def test_positives_and_queries_of_other_folds_are_nothing_to_a_training_row(tmp_path):
    rows = [{"query": f"q{n}", "answer": "a", "positive": f"text {n}", "document": f"d{n}"} for n in range(6)]
    rows.append({"query": "q0", "answer": "a", "positives": ["text 6", "text 0"], "document": "d6"})
    for row in rows[:-1]:
        row["positives"] = [row.pop("positive")]
    data = read_data(DataConfig(train_data=put(tmp_path / "r.jsonl", rows), folds=7, fold=0), builtin=False)
    assert data.split and data.split.documents["d0"] == 0 and [row.query for row in data.evaluation] == ["q0"]
    last = data.train[-1]
    assert [data.texts[n] for n in last.positives] == ["text 6"]  # the other is a passage of the held-out document
    assert last.also == ()
    assert all(data.document_of(n) != "d0" for row in data.train for n in row.own)


def test_eval_fraction_and_what_it_leaves_alone(files):
    data = read_data(DataConfig(**files, eval_fraction=0.34), builtin=False)
    assert len(data.evaluation) == 20 and len(data.train) == 40 and data.allowed is None
    held_out = {data.row_document(row) for row in data.evaluation}
    assert not held_out & {data.row_document(row) for row in data.train} and len(held_out) == 4
    assert any("20 of 60 rows are held out (4 of 12 documents)" in notice for notice in data.notices)
    fewer = read_data(DataConfig(**files, eval_fraction=0.34, max_eval_samples=3), builtin=False)
    assert fewer.evaluation == data.evaluation[:3] and fewer.train == data.train
    with_eval = DataConfig(**files, eval_data=files["train_data"], eval_fraction=0.34)
    assert len(read_data(with_eval, builtin=False).train) == 60
    assert read_data(replace(with_eval, eval_fraction=0.0), builtin=False).split is None


def test_without_a_corpus_rows_are_divided_by_passage(tmp_path):
    rows = [{"query": f"q{n}", "answer": "a", "positive": f"text {n % 40}"} for n in range(80)]
    data = read_data(DataConfig(train_data=put(tmp_path / "r.jsonl", rows), eval_fraction=0.25), builtin=False)
    known = {n for row in data.train for n in row.positives}
    assert len(data.evaluation) == 20 and not known & {n for row in data.evaluation for n in row.positives}
    assert data.corpus_size == 40  # the held-out rows are asked of all passages


def test_settings_of_folds_that_contradict():
    with pytest.raises(UserError, match="--folds 5: which is evaluated"):
        build({"folds": 5})
    with pytest.raises(UserError, match="--fold 5: no such fold"):
        build({"folds": 5, "fold": 5})
    assert build({"folds": 5, "fold": 4}).data.fold == 4
