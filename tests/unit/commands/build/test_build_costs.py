"""The predicted cost of a build: counts from files, FLOPs by hand, the rate from what earlier stages took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_rag.commands.build.costs import START, Sizes, epochs_in, flops_of, predict, rate_of, sizes, workload
from ds_rag.commands.build.options import Wanted
from ds_rag.commands.build.state import Entry
from ds_rag.commands.cli import main
from ds_rag.commands.plan.duration import forward_flops
from ds_rag.commands.plan.shapes import read_shape
from ds_rag.commands.plan.workload import Load

MODELS = {"retriever": "minilm", "generator": "gpt2"}


def wanted(tmp_path: Path, **more: object) -> Wanted:
    return Wanted((str(tmp_path / "docs"),), tmp_path / "out", given=MODELS | more)


@pytest.fixture(autouse=True)
def documents(tmp_path) -> None:
    (tmp_path / "docs/.git").mkdir(parents=True)
    (tmp_path / "docs/a.md").write_text("x" * 72_000)
    (tmp_path / "docs/b.pdf").write_text("x" * 720_000)
    (tmp_path / "docs/.git/config").write_text("x" * 10**6)


def test_before_documents_are_cut_passages_are_guessed_then_counted(tmp_path):
    guess = sizes(wanted(tmp_path))
    assert guess == Sizes(round((72_000 + 36_000) / 4.5 / 160), 90, 300, guessed=True)
    (tmp_path / "out/rows").mkdir(parents=True)
    (tmp_path / "out/passages.jsonl").write_text("{}\n" * 70)
    asked = Wanted(
        (str(tmp_path / "docs"),), tmp_path / "out", given=MODELS, more={"qa_gen": ("--questions_per_passage", "3")}
    )
    assert sizes(asked) == Sizes(70, 63, 210, guessed=True)
    (tmp_path / "out/rows/rows.json").write_text(json.dumps({"train": {"rows": 33, "labelled": 33}}))
    assert sizes(asked) == Sizes(70, 33, 210, guessed=False)


def test_flops_by_hand(tmp_path):
    shapes = read_shape("minilm", "--retriever", False), read_shape("gpt2", "--generator", True)
    call, size = wanted(tmp_path, num_train_epochs=2.0), Sizes(100, 50, 100, False)
    corpus = forward_flops(shapes[0], Load(100 * 200, 100 * 200**2))
    found = {name: flops_of(name, call, size, workload(call), shapes) for name in ("index", "audit", "train")}
    assert found["index"] == corpus
    work = workload(call)
    assert found["audit"] == corpus + forward_flops(shapes[1], work.load_of(50 * 16, 100))
    # Twice the corpus, 8 cells of each row once, and in 2 epochs a forward and two backwards of 2 passages and a query.
    one = forward_flops(shapes[0], Load(2 * 200, 2 * 200**2)) + forward_flops(shapes[0], Load(64, 64**2))
    teacher = forward_flops(shapes[1], work.load_of(50 * 8, 100))
    assert found["train"] == pytest.approx(2 * corpus + teacher + 3 * 2 * 50 * one)


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [({"num_train_epochs": 3.0}, 3), ({"num_train_epochs": "auto"}, 8), ({"max_steps": 25}, 4), ({}, 1)],
)
def test_how_often_rows_are_read(settings, epochs):
    """100 rows in batches of 16: 6.25 steps an epoch, of which 8 give 50."""
    assert epochs_in(settings | {"per_device_train_batch_size": 16}, 100, 1) == epochs


def test_labels_cost_no_likelihoods(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n" * 50)
    free = predict(wanted(tmp_path), 1e9)["train"]
    by_labels = Wanted((str(tmp_path / "docs"),), tmp_path / "out", str(tmp_path / "rows.jsonl"), MODELS)
    assert free.counts == "90 rows, 150 passages" and predict(by_labels, 1e9)["train"].counts.startswith("50 rows")
    assert free.seconds == START + free.flops / 1e9


def test_a_model_whose_shape_is_not_known_has_no_figure(tmp_path):
    cost = predict(wanted(tmp_path, generator="org/some-model"), 1e9)["train"]
    assert (cost.flops, cost.seconds) == (None, None)


def test_the_rate_is_that_of_the_stages_before():
    done = Entry("", "", exit=0, seconds=START + 100, flops=5e12)
    assert rate_of({"audit": done, "split": Entry("", "", exit=0, seconds=9, flops=0.0)}, 1)[0] == 5e10
    failed = Entry("", "", exit=1, seconds=START + 100, flops=5e15)
    assert rate_of({"train": failed}, 1)[0] != 5e13 and "assumed" in rate_of({}, 1)[1]


def test_a_dry_run_prints_the_stages_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["build", "docs", "--out", "out", "--retriever", "minilm", "--generator", "gpt2", "--dry_run"]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in ("ds-rag split out/questions.jsonl", "ds-rag train --config", "ds-rag audit --data", "2 files, 0.8 MB"):
        assert text in said, text
    assert "is guessed from the size of others" in said and not (tmp_path / "out").exists()
