"""Rows 24 and 25 through the commands: a run over three passages, and an index whose corpus was edited."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from bad_input import ds_rag, put_jsonl
from commands import train

from ds_rag.index import corpus_check

WORDS = ("flint", "ebony", "kelp")
CORPUS = [{"id": f"c{n}", "text": f"the tavern of zor {n} is {word}"} for n, word in enumerate(WORDS)]
ROWS = [{"query": f"where is tavern {n} ?", "answer": "x", "positive": c["text"]} for n, c in enumerate(CORPUS)]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a run of one step in batches of one, its rows and its corpus."""
    folder = tmp_path_factory.mktemp("edited")
    rows, corpus = put_jsonl(folder / "rows.jsonl", ROWS), put_jsonl(folder / "corpus.jsonl", CORPUS)
    flags = ["--train_data", rows, "--eval_data", rows, "--corpus", corpus, "--per_device_train_batch_size", "1"]
    flags += ["--max_steps", "1", "--lm_warmup_steps", "0", "--save_steps", "0", "--top_k", "50"]
    train(folder / "run", *flags, "--max_new_tokens", "2")
    return folder


@pytest.fixture
def place(made, tmp_path) -> Path:
    """A copy; the index names the corpus where it was, so that is put back there afterwards."""
    shutil.copytree(made / "run", tmp_path / "run")
    yield tmp_path
    put_jsonl(made / "corpus.jsonl", CORPUS)


def ask(capsys, run: Path, *flags: str | Path, code: int = 0) -> str:
    return ds_rag(capsys, "ask", run, "where ?", *flags, code=code)


def test_row_24_top_k_above_the_corpus_gives_the_whole_corpus(made, tmp_path, capsys):
    ask(capsys, made / "run", "--json", tmp_path / "answer.json")
    found = json.loads((tmp_path / "answer.json").read_text())["passages"]
    assert {passage["id"] for passage in found} == {"c0", "c1", "c2"}
    ds_rag(capsys, "evaluate", "--run", made / "run", "--json", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["retrieval"]["recall@10"] == 1.0 and scores["setting"]["passages"] == 3


def test_row_25_a_corpus_that_was_not_touched_is_not_read_again(made, tmp_path, capsys, monkeypatch):
    """By `ask` and `mine`, of the index that training left and of one made later."""
    run = shutil.copytree(made / "run", tmp_path / "run")
    mine = ["mine", "--run", run, "--data", made / "rows.jsonl", "--out", tmp_path / "mined.jsonl", "--overwrite"]
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(corpus_check, "read_corpus", lambda *_: pytest.fail("parsed again"))
            assert "flint" in ask(capsys, run)
            ds_rag(capsys, *mine)
        ds_rag(capsys, "index", "--run", run, "--corpus", made / "corpus.jsonl")


EDITS = {
    "edited": (
        [CORPUS[0] | {"text": "the tavern of zor 0 is opal"}, *CORPUS[1:]],
        "3 passages",
        "1 not in",
        "1 of the",
    ),
    "added": ([*CORPUS, {"id": "c3", "text": "more"}], "4 passages", "1 not in", "0 of the"),
    "removed": (CORPUS[:2], "2 passages", "0 not in", "1 of the"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_row_25_an_index_of_another_corpus_is_refused_with_the_counts(edit, made, place, capsys):
    ask(capsys, place / "run")
    corpus, *words = EDITS[edit]
    put_jsonl(made / "corpus.jsonl", corpus)
    printed = ask(capsys, place / "run", code=2)
    for word in (str(made / "corpus.jsonl"), "of content", "expected: the 3 of content", *words):
        assert word in printed
    mine = ["mine", "--run", place / "run", "--data", made / "rows.jsonl", "--out", place / "mined.jsonl"]
    assert "is not what this index was made from" in ds_rag(capsys, *mine, code=2)
    ds_rag(capsys, "mine", *mine[1:], "--corpus", made / "corpus.jsonl")  # encoded anew


def test_row_25_the_mended_index_serves_again(made, place, capsys):
    put_jsonl(made / "corpus.jsonl", EDITS["edited"][0])
    ask(capsys, place / "run", code=2)
    ds_rag(capsys, "index", "--run", place / "run", "--corpus", made / "corpus.jsonl")
    assert "opal" in ask(capsys, place / "run")
    put_jsonl(made / "corpus.jsonl", CORPUS)
    ask(capsys, place / "run", code=2)
    ds_rag(capsys, "index", "--run", place / "run")  # its own passages, of whatever file
    assert "opal" in ask(capsys, place / "run")
    assert "1 not in the index" in ask(capsys, place / "run", "--corpus", made / "corpus.jsonl", code=2)


def test_row_25_another_order_and_repeated_texts_are_the_same_corpus(made, place, capsys):
    put_jsonl(made / "corpus.jsonl", [*CORPUS[::-1], CORPUS[0] | {"id": "again"}])
    assert "flint" in ask(capsys, place / "run")


def test_row_25_a_corpus_that_is_gone_leaves_the_index_as_it_is(made, place, capsys):
    (made / "corpus.jsonl").unlink()
    assert "flint" in ask(capsys, place / "run")


def test_row_25_texts_edited_in_the_index_itself_are_refused(place, capsys):
    texts = place / "run/index/texts.jsonl"
    texts.write_text(texts.read_text().replace("flint", "opal"))
    printed = ask(capsys, place / "run", code=2)
    assert "texts.jsonl" in printed and "ds-rag index" in printed
