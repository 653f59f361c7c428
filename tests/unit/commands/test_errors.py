"""`ds-rag errors`: what is listed, in which order, and what is said, from a table written by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds_rag.commands import cli
from ds_rag.commands.errors import list_questions
from ds_rag.evaluation.per_question import PerQuestion, read_per_question, write_per_question

# id: gold rank, whether each passage contains an answer, posterior; the gold passage is always "g".
ROWS: dict[str, tuple[int | None, list[bool] | None, list[float]]] = {
    "right": (1, [True, False, False], [0.9, 0.05, 0.05]),
    "second": (2, [False, True, False], [0.2, 0.7, 0.1]),  # what stands above contains no answer
    "third": (3, [False, False, True], [0.1, 0.1, 0.8]),
    "twin": (2, [True, True, False], [0.6, 0.3, 0.1]),  # what stands above does: a likely false negative
    "surer": (None, [True, True, False], [0.5, 0.45, 0.05]),  # two of them, together likelier
    "unlabelled": (None, None, []),
}


def table(folder: Path) -> Path:
    retrieved = []
    for rank, _, _ in ROWS.values():
        others = iter(("p1", "p2", "p3"))
        retrieved.append(["g" if rank == place else next(others) for place in (1, 2, 3)])
    value = [np.nan if name == "unlabelled" else float(row[0] == 1) for name, row in ROWS.items()]
    details: dict[str, list[Any]] = {
        "query": [f"the question {name} ?" for name in ROWS],
        "answers": [["ann"] for _ in ROWS],
        "gold": [[] if name == "unlabelled" else ["g"] for name in ROWS],
        "gold_rank": [row[0] for row in ROWS.values()],
        "answer_in": [row[1] for row in ROWS.values()],
        "posterior": [row[2] for row in ROWS.values()],
        "passages": [[f"text of {p}" for p in row] for row in retrieved],
        "gold_text": ["the labelled text"] * len(ROWS),
        "answer": ["bob"] * len(ROWS),
    }
    metrics = {"recall@1": np.array(value), "f1": np.array([0.5, 1, 0, 0, 0, 0])}
    found = PerQuestion(list(ROWS), [None] * len(ROWS), metrics, retrieved, [[3.0, 2.0, 1.0]] * len(ROWS), details)
    return write_per_question(found, folder / "after")[0]


def run(argv: list[Any], folder: Path) -> dict[str, Any]:
    assert cli.main(["errors", *map(str, argv), "--json", str(folder / "out.json")]) == 0
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return found


def test_likely_false_negatives_come_first_and_then_the_worst(tmp_path: Path) -> None:
    entries = list_questions(read_per_question(table(tmp_path)), "recall@1")
    assert [e["id"] for e in entries] == ["surer", "twin", "third", "second", "right"]
    assert [e["kind"] for e in entries] == ["false_negatives", "false_negatives", "missed", "missed", "found"]
    surer = entries[0]
    assert (surer["suspects"], surer["above"]) == (["p1", "p2"], ["p1", "p2", "p3"])
    assert surer["suspicion"] == pytest.approx(0.95) and entries[1]["suspicion"] == pytest.approx(0.6)
    assert entries[2]["suspicion"] is None and entries[2]["above"] == ["p1", "p2"]


@pytest.mark.parametrize(
    ("flags", "ids"),
    [
        ([], ["surer", "twin", "third", "second"]),
        (["--only", "false_negatives"], ["surer", "twin"]),
        (["--only", "found"], ["right"]),
        (["--limit", 1], ["surer"]),
        (["--limit", 0], ["surer", "twin", "third", "second"]),
        (["--figure", "f1", "--only", "found"], ["second"]),
    ],
)
def test_filters(tmp_path: Path, flags: list[Any], ids: list[str]) -> None:
    found = run([table(tmp_path), *flags], tmp_path)
    assert [q["id"] for q in found["questions"]] == ids
    assert sum(found["counts"].values()) == (6 if "f1" in flags else 5)


def test_a_run_is_read_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(tmp_path)
    assert cli.main(["errors", str(tmp_path), "--limit", "2"]) == 0
    shown = capsys.readouterr().out
    assert "4 of 5 questions missed by recall@1, of 2 of them" in shown and "1 without a value" in shown
    assert "p1 (contains an answer, posterior 0.50): text of p1" in " ".join(shown.split())
    assert "wanted: ann   answered: bob" in shown and "labelled: the labelled text" in shown
    assert "2 more" in shown


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["nothing.questions.parquet"], "not a table"),
        (["."], "no results per question"),
        (["after.questions.parquet", "--figure", "mrr@10"], "not in the table"),
        (["after.questions.parquet", "--limit", "-1"], "out of bounds"),
    ],
)
def test_what_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str], word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if argv != ["."]:
        table(tmp_path)
    assert cli.main(["errors", *argv]) == 2
    assert word in capsys.readouterr().err


def test_it_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys; from ds_rag.commands import cli; cli.main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "errors", table(tmp_path)], capture_output=True, check=False)
    assert done.returncode == 0 and b"surer" in done.stdout
