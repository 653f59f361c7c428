"""What `ds-rag evaluate` leaves: figures with n, intervals and a signature; beside them the results per question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small import finished_run

from ds_rag.commands import cli
from ds_rag.evaluation.per_question import read_per_question
from ds_rag.index.store import hash_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("evaluate")
    finished_run(folder)
    return folder


def evaluate(place: Path, out: Path, *flags: str) -> int:
    argv = ["evaluate", "--run", str(place / "run"), "--data", str(place / "rows.jsonl"), "--json", str(out), *flags]
    return cli.main([*argv, "--corpus", str(place / "corpus.jsonl")])


def test_the_json_and_the_two_files_beside_it(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scores.json"
    assert evaluate(place, out, "--controls") == evaluate(place, out, "--controls") == 0  # the second replaces them
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "scores.json",
        "scores.json.questions.parquet",
        "scores.json.trec",
    ]
    found: dict[str, Any] = json.loads(out.read_text())
    controls = ("closed_book", "random_passage", "retrieved", "gold_passage", "retrieved_without_first")
    assert {"retrieval", "answers", "setting"} | {f"answers_{name}" for name in controls} <= set(found)
    table = read_per_question(f"{out}.questions.parquet")
    figures = found["retrieval"] | found["answers"] | found["without_labels"]
    for name in controls:
        figures |= {f"{name}/{metric}": value for metric, value in found[f"answers_{name}"].items()}
    assert table.means() == pytest.approx(figures) and set(found["n"]) == set(found["intervals"]) == set(figures)
    assert found["n"]["recall@1"] == 3 and table.ids == ["row-1", "row-2", "row-3"]
    low, high = found["intervals"]["recall@1"]
    assert low <= found["retrieval"]["recall@1"] <= high
    signature = found["signature"]
    assert signature["model_hashes"] == {name: hash_model(place / "run" / name) for name in ("retriever", "generator")}
    assert (signature["passages"], signature["top_k"]) == (3, 2)
    shown = capsys.readouterr().out
    assert signature["line"] in " ".join(shown.split()) and "95 % interval" in shown and "with labels" in shown
    assert len((tmp_path / "scores.json.trec").read_text().splitlines()) == 9


def test_the_run_can_be_listed_and_its_errors_named(place: Path, tmp_path: Path) -> None:
    assert evaluate(place, tmp_path / "s.json") == 0
    table = str(tmp_path / "s.json.questions.parquet")
    assert cli.main(["errors", table, "--json", str(tmp_path / "errors.json")]) == 0
    found = json.loads((tmp_path / "errors.json").read_text())
    recall = json.loads((tmp_path / "s.json").read_text())["retrieval"]["recall@1"]
    assert found["counts"]["found"] == round(3 * recall) and sum(found["counts"].values()) == 3


@pytest.mark.parametrize(
    ("name", "word"), [("s.json.trec", "another file"), ("s.json.questions.parquet", "not a table")]
)
def test_files_of_the_users_beside_it_stay(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, word: str
) -> None:
    (tmp_path / name).write_text("mine")
    assert evaluate(place, tmp_path / "s.json") == 2
    assert word in capsys.readouterr().err and (tmp_path / name).read_text() == "mine"
    assert not (tmp_path / "s.json").exists()
