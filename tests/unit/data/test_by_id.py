"""Labels by passage id become the passages of the corpus that have these ids; what no passage has is a bad row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ds_rag.commands import cli
from ds_rag.config import DataConfig
from ds_rag.data.columns import Columns
from ds_rag.data.dataset import RagData, read_data, read_evaluation
from ds_rag.data.in_memory_rows import corpus_from, rows_from
from ds_rag.runtime.errors import UserError

CORPUS: list[dict[str, Any]] = [
    {
        "id": "guide#1",
        "title": "Guide > Zor",
        "text": "the tavern is amber",
        "document": "guide.md",
        "place": "lines 1-3",
    },
    {"id": "guide#2", "title": "Guide > Via", "text": "the tavern is flint", "document": "guide.md"},
    {"id": "notes#1", "text": "kelp grows in pool nine", "document": "notes.md"},
    {"id": 17, "text": "seventeen"},
]
TEXTS = ["Guide > Zor the tavern is amber", "Guide > Via the tavern is flint", "kelp grows in pool nine", "seventeen"]


def read(files: Any, *rows: dict[str, Any], corpus: list[dict[str, Any]] | None = CORPUS, **settings: Any) -> RagData:
    named = [{"query": f"q{n}", "answer": "a"} | row for n, row in enumerate(rows)]
    path = str(files.jsonl("r.jsonl", named))
    if corpus is not None:
        settings["corpus"] = str(files.jsonl("c.jsonl", corpus))
    return read_data(DataConfig(train_data=path, **settings), builtin=False)


@pytest.mark.parametrize("name", ["positive_ids", "positive_id", "passage_id", "Passage ID", "retrieval_gt"])
@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        ("guide#2", (1,)),
        (["guide#1", "notes#1"], (0, 2)),
        (17, (3,)),
        ("17", (3,)),
        ([17, "guide#1"], (3, 0)),
        ('["guide#1", "guide#2"]', (0, 1)),
        ("[17]", (3,)),
        ([["guide#1"], ["guide#2", "guide#1"]], (0, 1)),
    ],
)
def test_ids_are_the_passages_of_the_corpus(name: str, value: Any, numbers: tuple[int, ...], files: Any) -> None:
    """With their titles, as the corpus has them, and once."""
    data = read(files, {name: value})
    assert data.train[0].positives == numbers and data.texts == TEXTS, "nothing is added to the corpus"
    assert not any("not used" in note for note in data.notices)


def test_negatives_by_id_and_candidates_as_texts(files: Any) -> None:
    row = {"positive_ids": ["guide#1"], "negative_ids": ["guide#2", 17], "passages": ["kelp grows in pool nine", "new"]}
    (example,) = read(files, row).train
    assert (example.positives, example.negatives, example.others) == ((0,), (1, 3), (2, 4, 1, 3))


def test_the_document_of_a_row_is_that_of_its_passage(files: Any) -> None:
    data = read(files, {"positive_ids": "guide#2"}, {"positive_ids": "guide#1", "document": "own.md"})
    assert [data.row_document(row) for row in data.train] == ["guide.md", "own.md"]


def test_labelled_pairs_and_scores_by_id(files: Any) -> None:
    pairs = [{"query": "q", "passage_id": id_, "label": label} for id_, label in (("guide#1", 2), ("guide#2", 0))]
    (example,) = read(files, *pairs).train
    assert (example.positives, example.negatives, example.grades) == ((0,), (1,), (2,))
    row = {"positive_ids": ["guide#1"], "negative_ids": ["guide#2"], "teacher_scores": [1.5, -2.0]}
    path = files.jsonl("s.jsonl", [{"query": "q"} | row])
    settings = DataConfig(train_data=str(path), corpus=str(files.folder / "c.jsonl"))
    data = read_data(settings, builtin=False, need_answers=False, need_scores=True)
    assert data.train[0].scores == {0: 1.5, 1: -2.0}


def test_an_unknown_id_is_a_bad_row_with_the_nearest_one(files: Any) -> None:
    rows = [{"positive_ids": "guide#1"}, {"positive_ids": ["guide#1", "gide#2"]}, {"positive_ids": {"a": 1}}]
    with pytest.raises(UserError) as caught:
        read(files, *rows)
    path, message = files.folder / "r.jsonl", str(caught.value)
    assert f"{path}:2: 'positive_ids' names str 'gide#2', and no passage of the corpus has this id" in message
    assert "did you mean 'guide#2'?" in message and f"{path}:3: 'positive_ids' holds dict" in message
    kept = read(files, *rows, on_bad_row="skip")
    assert [row.id for row in kept.train] == ["row-1"] and any("2 bad rows are left out" in n for n in kept.notices)


def test_without_a_corpus_there_is_nothing_to_name(files: Any) -> None:
    with pytest.raises(UserError, match="'passage_id' names passages by id, and there is no corpus") as caught:
        read(files, {"passage_id": "guide#1"}, corpus=None)
    assert "--corpus FILE" in str(caught.value.fix) and "guide#1" in caught.value.found
    data = read(files, {"passage_id": "guide#1", "passages": ["x"], "negative_ids": ["n"]}, corpus=None)
    assert data.train[0].others == (0,) and sum("its ids are found in a --corpus alone" in n for n in data.notices) == 2


def test_texts_count_where_rows_have_texts_and_ids(files: Any) -> None:
    data = read(files, {"positive": "kelp grows in pool nine", "passage_id": "guide#1"})
    assert data.train[0].positives == (2,) and any("not used: 'passage_id'" in note for note in data.notices)


@pytest.mark.parametrize("column", ["passage_id", "gold"])
def test_a_column_of_texts_that_are_ids_is_one_of_ids(column: str, files: Any) -> None:
    """`--positive_column passage_id` is the trap: the string of the id is no passage."""
    data = read(files, {column: "guide#2"}, {column: "notes#1"}, positive_column=column)
    assert [row.positives for row in data.train] == [(1,), (2,)] and data.texts == TEXTS
    assert any(f"'{column}' holds ids of the corpus" in note for note in data.notices)
    with pytest.raises(UserError, match=r"gide#1.*did you mean 'guide#1'"):
        read(files, {column: "guide#2"}, {column: "gide#1"}, positive_column=column)
    codes = [*CORPUS, {"id": "x", "text": "guide#2"}]  # a text of the corpus is a text
    assert read(files, {"gold": "guide#2"}, corpus=codes, positive_column="gold").train[0].positives == (4,)


def test_evaluation_rows_and_the_ids_of_a_beir_folder(files: Any) -> None:
    beir = files.beir("b", [{"id": "q", "query": "who", "answers": ["x"], "positives": ["p0", "p1"], "negatives": []}])
    data = read(files, {"positive_ids": "d1"}, corpus=None, eval_data=str(beir))
    assert data.train[0].positives == (1,) and data.texts == ["p0", "p1"]
    rows = str(files.jsonl("e.jsonl", [{"query": "q", "positive_ids": ["d0"]}]))
    (example,) = read_evaluation(DataConfig(eval_data=rows, corpus=str(beir)), builtin=False).evaluation
    assert example.positives == (0,)


def test_the_corpus_is_read_once_and_for_ids_alone_before_the_rows(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    from ds_rag.data import data_settings, dataset

    for module, name in ((data_settings, "read_corpus"), (dataset, "read_rows")):
        real = getattr(module, name)

        def spied(*args: Any, real: Any = real, name: str = name, **kwargs: Any) -> Any:
            found = real(*args, **kwargs)
            order.append(name)
            return found

        monkeypatch.setattr(module, name, spied)
    read(files, {"positive": "the tavern is amber"})
    assert order == ["read_rows", "read_corpus"]
    order.clear()
    read(files, {"positive_ids": "guide#1"})
    assert order == ["read_corpus", "read_rows"]


def test_rows_in_memory(files: Any) -> None:
    corpus = corpus_from(CORPUS)
    (row,) = rows_from([{"query": "q", "positive_ids": ["guide#2"]}], True, False, corpus=corpus)
    assert row.positives == (TEXTS[1],)
    with pytest.raises(UserError, match="there is no corpus"):
        rows_from([{"query": "q", "positive_ids": ["guide#2"]}], True, False)


def test_check_and_a_split_read_ids_too(files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"query": f"q{n}", "answer": "a", "positive_ids": CORPUS[n % 3]["id"]} for n in range(40)]
    path, corpus = str(files.jsonl("r.jsonl", rows)), str(files.jsonl("c.jsonl", CORPUS))
    assert cli.main(["check", path, "--corpus", corpus]) == 0
    assert "with labelled positives" in capsys.readouterr().out
    assert cli.main(["check", path]) == 2 and "--corpus FILE" in capsys.readouterr().err
    settings = DataConfig(train_data=path, corpus=corpus, folds=2, fold=0)
    data = read_data(settings, builtin=False)
    held = {data.row_document(row) for row in data.evaluation}
    assert held in ({"guide.md"}, {"notes.md"}) and not held & {data.row_document(row) for row in data.train}
    assert replace(settings, folds=0).train_data == path


def test_a_row_by_text_and_one_by_id_mean_the_same_passage(files: Any) -> None:
    """The chunk's text without its title, and its id."""
    by_text = read(files, {"positive": "the tavern is amber"})
    by_id = read(files, {"positive_ids": "guide#1"})
    assert by_text.train[0].positives == by_id.train[0].positives == (0,) and by_text.texts == by_id.texts == TEXTS


def test_the_flag_may_name_the_column_of_ids(files: Any) -> None:
    rows = [{"query": "q", "answer": "a", "docs": ["guide#1"]}]
    path = files.jsonl("r.jsonl", rows)
    assert "holds ids of passages" in files.error(files.jsonl("s.jsonl", [{"query": "q", "answer": "a", "pid": "p1"}]),
                                                  Columns(positives="pid"))  # fmt: skip
    settings = DataConfig(train_data=str(path), corpus=str(files.jsonl("c.jsonl", CORPUS)), positive_column="docs")
    assert read_data(settings, builtin=False).train[0].positives == (0,)
