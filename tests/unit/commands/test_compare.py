"""`ds-rag compare`: what its arguments stand for, what it prints, writes and draws, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds_rag.commands.cli import run
from ds_rag.commands.compare.command import named_tables
from ds_rag.evaluation.per_question import PerQuestion, write_per_question
from ds_rag.evaluation.significance import interval
from ds_rag.runtime.errors import UserError

DOCUMENTS = 24
PER_DOCUMENT = 5
COUNT = DOCUMENTS * PER_DOCUMENT


def results(rate: float, seed: int = 0, **signature: Any) -> PerQuestion:
    """Answers that are right with this rate, a document's all together half of the time."""
    rng = np.random.default_rng(seed)
    right = rng.random(COUNT) < rate
    together = np.repeat(rng.random((DOCUMENTS, 1)) < rate, PER_DOCUMENT, axis=1).ravel()
    right = np.where(rng.random(COUNT) < 0.5, together, right).astype(float)
    documents: list[str | None] = [f"d{n // PER_DOCUMENT}" for n in range(COUNT)]
    return PerQuestion(
        ids=[f"q{n}" for n in range(COUNT)],
        documents=documents,
        metrics={"recall@1": right, "f1": right * 0.5 + 0.1 * rng.random(COUNT)},
        retrieved=[["p"]] * COUNT,
        scores=[[1.0]] * COUNT,
        details={"topic": [f"t{n % 30}" for n in range(COUNT)]},
        signature={"data_hash": "d", "corpus_hash": "c", "top_k": 4, "seed": seed, **signature},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("compare")
    for name, rate in (("poor", 0.2), ("good", 0.8)):
        (place / name).mkdir()
        write_per_question(results(rate, seed=1), place / name / "after")
        write_per_question(results(0.1, seed=1), place / name / "before")
    for seed in (2, 3):
        write_per_question(results(0.8, seed=seed), place / f"good{seed}")
    (place / "scores.json").write_text("{}")
    write_per_question(results(0.5, seed=9), place / "scores.json")
    write_per_question(results(0.5, seed=8, data_hash="other"), place / "elsewhere")
    return place


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def compared(*words: str, file: Path) -> dict[str, Any]:
    assert run("compare", [*words, "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared("poor", "good", file=tmp_path / "x.json")
    one, other = results(0.2, 1), results(0.8, 1)
    figure = found["figures"]["recall@1"]
    (pair,) = figure["pairs"]
    assert (pair["a"], pair["b"], figure["n"], figure["documents"]) == ("poor", "good", COUNT, DOCUMENTS)
    differences = other.metrics["recall@1"] - one.metrics["recall@1"]
    assert pair["difference"] == pytest.approx(differences.mean())
    assert pair["interval"] == pytest.approx(interval(differences, one.documents))
    assert pair["p"] == pair["p_holm"] < 0.01
    mean = figure["systems"]["good"]
    assert mean["mean"] == pytest.approx(other.metrics["recall@1"].mean()) == mean["seeds"][0]
    assert mean["interval"] == pytest.approx(interval(other.metrics["recall@1"], one.documents))
    assert list(found["figures"]) == ["recall@1", "f1"]
    (line,) = found["verdicts"]
    assert line.startswith("good is higher than poor in recall@1, by ")
    printed = capsys.readouterr().out
    assert line in printed and "24 documents" in printed and "f1" in printed and "warning" not in printed


def test_one_run_is_its_after_against_its_before(tmp_path: Path) -> None:
    (pair,) = compared("good", file=tmp_path / "x.json")["figures"]["f1"]["pairs"]
    assert (pair["a"], pair["b"]) == ("before", "after")
    wanted = results(0.8, 1).metrics["f1"] - results(0.1, 1).metrics["f1"]
    assert pair["difference"] == pytest.approx(wanted.mean())


def test_seeds_are_averaged_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = "good3.questions.parquet,good,good2.questions.parquet"
    found = compared(f"ours={seeds}", "poor", file=tmp_path / "x.json")["figures"]["recall@1"]
    means = [float(results(0.8, seed).metrics["recall@1"].mean()) for seed in (1, 2, 3)]
    assert found["n"] == COUNT  # not three times as many
    assert found["systems"]["ours"]["seeds"] == pytest.approx(means)  # in the order of their seeds
    assert found["systems"]["ours"]["mean"] == pytest.approx(np.mean(means))
    assert f"3: {min(means):.3f} to {max(means):.3f}" in capsys.readouterr().out


def test_three_systems_are_a_family_of_three(tmp_path: Path) -> None:
    found = compared("poor", "scores.json", "good", file=tmp_path / "x.json")["figures"]["recall@1"]["pairs"]
    assert [(p["a"], p["b"]) for p in found] == [("poor", "scores"), ("poor", "good"), ("scores", "good")]
    raw, adjusted = (sorted(p[key] for p in found) for key in ("p", "p_holm"))
    assert adjusted[0] == pytest.approx(3 * raw[0]) and all(p["p_holm"] >= p["p"] for p in found)


def test_what_goes_together_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        column: compared("poor", "good", "--cluster_column", column, file=tmp_path / "x.json")["figures"]["recall@1"]
        for column in ("document", "topic", "none")
    }
    assert [f["documents"] for f in found.values()] == [24, 30, COUNT]
    widths = [f["pairs"][0]["interval"][1] - f["pairs"][0]["interval"][0] for f in found.values()]
    assert widths[0] > 1.3 * widths[2]  # a document's questions are right together
    assert "by question" in capsys.readouterr().out
    with pytest.raises(UserError, match="unknown column of the questions' table 'topics'"):
        run("compare", ["poor", "good", "--cluster_column", "topics"])


def test_other_data_is_refused_and_then_compared_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["good", "elsewhere.questions.parquet"]
    with pytest.raises(UserError, match="not of the same rows"):
        run("compare", words)
    found = compared(*words, "--different_data", file=tmp_path / "x.json")
    assert any("rows not the same for 120 questions" in note for note in found["notes"])
    assert "warning" in capsys.readouterr().out


def test_the_picture_is_a_png_and_replaces_only_such(tmp_path: Path) -> None:
    file = tmp_path / "new/x.png"
    run("compare", ["poor", "good", "scores.json", "--plot", str(file)])
    first = file.read_bytes()
    assert first[:4] == b"\x89PNG"
    run("compare", ["poor", "good", "--plot", str(file)])
    assert file.read_bytes() != first
    file.write_text("notes")
    with pytest.raises(UserError, match="another file is there"):
        run("compare", ["poor", "good", "--plot", str(file)])
    assert file.read_text() == "notes"


def test_arguments_that_stand_for_nothing(folder: Path, tmp_path: Path) -> None:
    for words, message in (
        (["scores.json"], "nothing to compare with"),
        (["a=good"], "nothing to compare with"),
        (["good", "good"], "two systems are called good"),
        (["a=good", "a=poor"], "two systems are called a"),
        (["a=good,good", "poor"], "one table twice"),
        (["good", "nowhere"], "no results per question"),
        (["good", "a="], "a name or a path is missing"),
        (["good", "a=poor,"], "a name or a path is missing"),
        (["good", str(tmp_path)], "no results per question"),
    ):
        with pytest.raises(UserError, match=message):
            named_tables(words)
    with pytest.raises(UserError, match="unknown figure 'recall@2'"):
        run("compare", ["good", "poor", "--figure", "recall@2"])


def test_names_of_systems(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "x=1,2").mkdir()
    for name in ("good", "x=1,2"):
        write_per_question(results(0.5), tmp_path / name / "after")
    other = str(tmp_path / "good")
    named = named_tables(["good", other, str(tmp_path / "x=1,2"), f"y={tmp_path}/x=1,2", "z=good"])
    assert list(named) == ["good", other, "x=1,2", "y", "z"]
    assert named["y"] == named["x=1,2"] == [tmp_path / "x=1,2/after.questions.parquet"]
    (tmp_path / "f.json").touch()
    write_per_question(results(0.5), tmp_path / "f")  # also where the suffix was left out
    assert named_tables([str(tmp_path / "f.json"), "good"])["f"] == [tmp_path / "f.questions.parquet"]


def test_it_needs_no_torch(folder: Path) -> None:
    code = "import sys; from ds_rag.commands.cli import run; run('compare', ['poor', 'good', '--plot', 'a.png'])"
    code += "; sys.exit(sorted({'torch', 'transformers', 'scipy'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
