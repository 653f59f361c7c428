"""`ds-rag split`: whole documents held out, for good; rows whose passages are gone are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_rag.commands.cli import main
from ds_rag.data.formats import read_rows

DOCUMENTS = 20


def put(file: Path, objects: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(o) + "\n" for o in objects))
    return str(file)


def corpus(documents: range = range(DOCUMENTS)) -> list[dict[str, Any]]:
    """Two passages of each document, below its title."""
    return [
        {"id": f"d{d}-{n}", "title": f"Guide {d}", "text": f"fact {n} of {d}", "document": f"d{d}.md"}
        for d in documents
        for n in range(2)
    ]


def rows(documents: range = range(DOCUMENTS)) -> list[dict[str, Any]]:
    """Four questions on each document; the labels lack the title."""
    return [
        {"id": f"q{d}-{n}", "query": f"what is {n} of {d}?", "answer": f"it {d}", "positive": f"fact {n % 2} of {d}"}
        for d in documents
        for n in range(4)
    ]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "corpus.jsonl", corpus())
    put(tmp_path / "rows.jsonl", rows())
    return tmp_path


def split(*flags: str) -> int:
    return main(["split", "rows.jsonl", "--corpus", "corpus.jsonl", "--out", "out", "--eval_fraction", "0.4", *flags])


def documents_in(name: str) -> set[str]:
    ids = [json.loads(line)["id"] for line in (Path("out") / name).read_text().splitlines()]
    return {id_.split("-")[0] for id_ in ids}


def summary() -> Any:
    return json.loads(Path("out/rows.json").read_text())


def test_documents_are_held_out_and_stay_so_when_others_come(here):
    assert split() == 0
    held_out, trained = documents_in("eval.jsonl"), documents_in("train.jsonl")
    assert not held_out & trained and len(held_out | trained) == DOCUMENTS and len(held_out) == 8
    assert summary()["eval"] == {"rows": 32, "labelled": 32} and summary()["train"]["rows"] == 48
    put(here / "corpus.jsonl", corpus(range(40)))
    put(here / "rows.jsonl", list(reversed(rows(range(40)))))
    assert split() == 0
    assert documents_in("eval.jsonl") == held_out and documents_in("train.jsonl") >= trained
    (here / "out/folds.json").unlink()
    assert split() == 0
    assert len(documents_in("eval.jsonl")) > len(held_out), "drawn anew, more of them"


def test_labels_are_the_passages_of_the_corpus_and_are_read_again(here):
    assert split() == 0
    (row, *_) = read_rows("out/eval.jsonl")
    (source,) = [r for r in rows() if r["id"] == row.id]
    assert (row.query, row.answers) == (source["query"], (source["answer"],))
    assert row.positives[0].startswith("Guide ") and row.positives[0].endswith(source["positive"])


def test_rows_that_lost_their_passage_are_named_and_left_out(here, capsys):
    put(here / "corpus.jsonl", [p for p in corpus() if p["id"] not in ("d3-1", "d4-0")])
    assert split() == 0
    assert (summary()["lost"], [row["id"] for row in summary()["lost_rows"]]) == (4, ["q3-1", "q3-3", "q4-0", "q4-2"])
    said = capsys.readouterr().out
    assert "4 rows are left out" in said and "q3-1  what is 1 of 3?" in said
    assert summary()["train"]["rows"] + summary()["eval"]["rows"] == 4 * DOCUMENTS - 4


def test_labels_by_id_are_lost_with_their_passage(here, capsys):
    by_id = [
        {k: v for k, v in row.items() if k != "positive"} | {"positive_ids": [f"{row['id'].replace('q', 'd')}", "d0-0"]}
        for row in rows()
        if row["id"].endswith(("-0", "-1"))
    ]
    by_id[8]["positive_ids"] = ["d4-0"]  # q4-0
    by_id[9] |= {"positive_ids": ["d4-1", "d4-0"], "negative_ids": ["d4-0", "d5-0"]}  # q4-1
    put(here / "rows.jsonl", by_id)
    put(here / "corpus.jsonl", [p for p in corpus() if p["id"] != "d4-0"])
    assert split("--eval_fraction", "0") == 0
    assert [row["id"] for row in summary()["lost_rows"]] == ["q4-0"] and "q4-0" in capsys.readouterr().out
    (kept,) = [row for row in read_rows("out/train.jsonl") if row.id == "q4-1"]
    assert (kept.positives, kept.negatives) == (("Guide 4 fact 1 of 4",), ("Guide 5 fact 0 of 5",))


def test_labels_of_other_passages_are_an_error_or_ignored(here, capsys):
    put(here / "corpus.jsonl", [p | {"text": f"quite another {p['id']}"} for p in corpus()])
    assert split() == 2
    assert "80 of 80 labelled rows" in capsys.readouterr().err and not (here / "out").exists()
    assert split("--ignore_labels") == 0
    assert summary()["labels_ignored"] == 80 and summary()["train"]["labelled"] == 0


def test_rows_of_their_own_are_evaluated_and_their_questions_not_trained_on(here):
    put(here / "dev.jsonl", [r | {"query": r["query"].upper()} for r in rows()[:3]])
    assert split("--eval_data", "dev.jsonl") == 0
    assert summary()["eval"]["rows"] == 3 and summary()["train"]["rows"] == 4 * DOCUMENTS - 3
    assert not (here / "out/folds.json").exists()


def test_nothing_is_held_out_where_nothing_is_to_be_measured(here):
    assert split() == 0 and (here / "out/eval.jsonl").exists()
    assert split("--eval_fraction", "0") == 0
    assert not (here / "out/eval.jsonl").exists() and summary()["train"]["rows"] == 4 * DOCUMENTS


def test_rows_without_labels_are_divided_by_their_own_document(here):
    bare = [{k: v for k, v in r.items() if k != "positive"} | {"document": r["id"].split("-")[0]} for r in rows()]
    put(here / "rows.jsonl", bare)
    assert split() == 0
    assert not documents_in("eval.jsonl") & documents_in("train.jsonl") and summary()["train"]["labelled"] == 0


def by_default() -> int:
    return main(["split", "rows.jsonl", "--corpus", "corpus.jsonl", "--out", "out"])


def test_by_default_enough_rows_are_held_out_to_measure_on(here, capsys):
    assert by_default() == 0
    held_out = documents_in("eval.jsonl")
    assert summary()["eval"]["rows"] == 20, "a quarter of 80, and not a tenth"
    put(here / "corpus.jsonl", corpus(range(100)))
    put(here / "rows.jsonl", rows(range(100)))
    assert by_default() == 0 and documents_in("eval.jsonl") == held_out
    (here / "out/folds.json").unlink()
    assert by_default() == 0 and summary()["eval"]["rows"] == 40
    put(here / "rows.jsonl", rows(range(9)))
    (here / "out/folds.json").unlink()
    assert by_default() == 0 and summary()["train"]["rows"] == 36 and not (here / "out/eval.jsonl").exists()
    assert "nothing is measured" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("flags", "says"),
    [(["--corpus", "nowhere.jsonl"], "does not exist"), (["--eval_fraction", "0.1"], "too few rows to measure on")],
)
def test_mistakes(here, capsys, flags, says):
    assert split(*flags) == 2
    assert says in capsys.readouterr().err


def test_without_a_corpus_labels_cannot_be_looked_for(here, capsys):
    assert main(["split", "rows.jsonl", "--out", "out"]) == 2
    assert "--corpus FILE" in capsys.readouterr().err
