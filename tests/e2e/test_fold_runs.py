"""Training and evaluation by folds and with a held-out fraction, through the real commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import call, lines, results

from ds_rag.data.almanac import make_world

LITTLE = ["--per_device_train_batch_size", "4", "--refresh_index", "2", "--max_new_tokens", "3", "--save_steps", "3"]
LITTLE += [
    "--max_query_length",
    "16",
    "--max_passage_length",
    "16",
    "--max_answer_length",
    "4",
    "--eval_answers",
    "false",
]
FOLDS = ["--folds", "3", "--fold", "1", "--candidates_from", "index", "--index_candidates", "4", "--candidates", "4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """rows.jsonl (40 rows), more.jsonl (and one of another document), corpus.jsonl: an entity is a document."""
    folder, world = tmp_path_factory.mktemp("documents"), make_world(2)
    rows = [
        {"query": row.query, "answer": row.answers[0], "document": " ".join(row.query.split()[-3:-1])}
        for row in world.train[:41]
    ]
    wanted = {row["document"] for row in rows}
    corpus = [
        {"id": p.id, "text": p.text, "document": " ".join(p.id.split("-")[:2])}
        for p in world.corpus
        if " ".join(p.id.split("-")[:2]) in wanted
    ]
    texts = {p.id: p.text for p in world.corpus}
    for row, drawn in zip(rows, world.train, strict=False):
        row["positive"] = next(t for t in texts.values() if t in drawn.passages)
    for name, objects in {"rows": rows[:40], "more": rows, "corpus": corpus}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(o) + "\n" for o in objects))
    return folder


def train(run: Path, rows: Path, *flags: str | Path, code: int = 0) -> str:
    files = ["--train_data", rows, "--corpus", rows.parent / "corpus.jsonl"]
    done = call(["train", "--output_dir", run, *files, *LITTLE, *flags], code)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """Three steps on the other two folds."""
    folder = tmp_path_factory.mktemp("runs") / "fold"
    said = train(folder, data / "rows.jsonl", *FOLDS, "--max_steps", "3")
    assert "of 40 rows are held out" in " ".join(said.split())
    return folder


def test_a_fold_is_trained_without_and_evaluated_alone(run, data, tmp_path):
    split = json.loads((run / "folds.json").read_text())
    rows = [json.loads(line) for line in (data / "rows.jsonl").read_text().splitlines()]
    assert (split["kind"], split["folds"], split["fold"]) == ("folds", 3, 1)
    assert set(split["documents"]) == {row["document"] for row in rows} and split["queries"] == {}
    held_out = sum(split["documents"][row["document"]] == 1 for row in rows)
    assert [line["step"] for line in lines(run)] == [1, 2, 3]
    corpus = (data / "corpus.jsonl").read_text().count("\n")
    figures = tmp_path / "figures.json"
    data_flags = ["--data", data / "rows.jsonl", "--corpus", data / "corpus.jsonl", "--folds", "3", "--fold", "1"]
    for flags in ([], data_flags):  # the run's own held-out rows, and the same fold of rows that are named
        call(["evaluate", "--run", run, *flags, "--json", figures])
        found = json.loads(figures.read_text())
        assert (found["setting"]["queries"], found["setting"]["passages"]) == (held_out, corpus)
        assert found["retrieval"] == pytest.approx({k: results(run)["after"][k] for k in found["retrieval"]})
    shown = call(["evaluate", "--run", run, *data_flags[:-1], "0"])
    assert "this run held out fold 1" in " ".join((shown.stdout + shown.stderr).split())


def test_a_resumed_run_keeps_its_split(run, data):
    before = json.loads((run / "folds.json").read_text())["documents"]
    said = train(run, data / "rows.jsonl", *FOLDS[:3], "2", *FOLDS[4:], "--max_steps", "4", "--resume", "auto", code=2)
    assert "--fold: 1 then, 2 now" in " ".join(said.split())
    kept = json.loads((run / "folds.json").read_text())
    assert (kept["documents"], kept["fold"]) == (before, 1), "what was refused has written nothing"
    train(run, data / "rows.jsonl", *FOLDS, "--max_steps", "4", "--resume", "auto")
    train(run, data / "more.jsonl", *FOLDS, "--max_steps", "5", "--resume", "auto", "--resume_changed")
    after = json.loads((run / "folds.json").read_text())["documents"]
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 1
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 5]


def test_a_held_out_fraction(data, tmp_path, quickstart):
    held = ["--eval_fraction", "0.5", "--objective", "infonce", "--max_steps", "1"]
    said = train(tmp_path / "run", data / "rows.jsonl", *held)
    assert "20 of 40 rows are held out" in " ".join(said.split())
    assert json.loads((tmp_path / "run/folds.json").read_text())["kind"] == "eval_fraction"
    assert "recall@1" in results(tmp_path / "run")["after"]
    question = ["ask", tmp_path / "run", "who leads zor via ?", "--json", tmp_path / "answer.json"]
    call(question)  # of a retriever that was trained alone
    assert json.loads((tmp_path / "answer.json").read_text())["answer"] is None
    call([*question, "--generator", quickstart / "generator", "--max_new_tokens", "3"])
    assert json.loads((tmp_path / "answer.json").read_text())["answer"] is not None
    said = train(tmp_path / "none", data / "rows.jsonl", "--eval_fraction", "0.1", code=2)
    assert "40 rows, of which 4 would be held out" in " ".join(said.split())
