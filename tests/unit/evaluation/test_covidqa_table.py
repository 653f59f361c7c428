"""The table of benchmarks/covidqa.py: folds joined, methods compared, nothing of a method whose folds are missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

import covidqa

QUESTIONS = 12  # of a fold, two articles of six


def write_piece(folder: Path, method: str, fold: int, share: float, seed: int = 0, prefixes: tuple[str, ...] = ("",)):
    """A piece in which the first `share` of each fold's questions are right."""
    right = (np.arange(QUESTIONS) < share * QUESTIONS).astype(float).tolist()
    piece = {
        "method": method,
        "fold": fold,
        "seed": seed,
        "minutes": 1.0,
        "signature": {"data_hash": f"rows-{fold}", "corpus_hash": "windows"},
        "ids": [f"q{fold}-{n}" for n in range(QUESTIONS)],
        "documents": [f"article-{fold}-{n // 6}" for n in range(QUESTIONS)],
        "metrics": {prefix + name: right for prefix in prefixes for name in covidqa.METRICS},
    }
    (folder / f"{method}-fold-{fold}-seed-{seed}.json").write_text(json.dumps(piece))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for fold in range(covidqa.FOLDS):
        write_piece(tmp_path, "bm25", fold, 0.5)
        write_piece(tmp_path, "zero_shot", fold, 0.25)
        for seed, share in enumerate((0.5, 1.0)):
            write_piece(tmp_path, "infonce_gold", fold, share, seed)
        write_piece(tmp_path, "reranked", fold, 1.0, 0, ("rerank_posterior/", "rerank_likelihood/"))
    return tmp_path


def test_lines_are_means_over_all_folds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = covidqa.show_table(folder)
    first = result.figures["recall@1"]
    assert (first.n, first.documents) == (QUESTIONS * covidqa.FOLDS, 2 * covidqa.FOLDS)
    means = {name: system.mean for name, system in first.systems.items()}
    assert means == pytest.approx(
        {
            "BM25": 0.5,
            "zero-shot": 0.25,
            "re-ranked, posterior": 1.0,
            "re-ranked, likelihood": 1.0,
            "InfoNCE with gold": 0.75,
        }
    )
    assert first.systems["InfoNCE with gold"].seeds == pytest.approx([0.5, 1.0])
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("| InfoNCE with gold |"))
    assert "| 2 | 0.750 (" in line and "+0.500 (" in line and "+0.250 (" in line and line.endswith("| 10 |")
    assert json.loads((folder / "comparison.json").read_text())["figure"] == "recall@1"


def test_a_method_without_all_folds_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "infonce_gold-fold-3-seed-1.json").unlink()
    (folder / "reranked-fold-0-seed-0.json").unlink()
    systems = covidqa.show_table(folder).figures["recall@1"].systems
    assert set(systems) == {"BM25", "zero-shot", "InfoNCE with gold"}
    assert systems["InfoNCE with gold"].seeds == [0.5], "the other seed is complete"


def test_commands_are_kept_without_this_machines_paths(tmp_path: Path) -> None:
    import argparse

    args = argparse.Namespace(data=tmp_path / "d", retriever="/models/e", generator=None, runs=tmp_path / "runs")
    words = covidqa.train_words(args, covidqa.METHODS["infonce_gold"], args.runs / "x", 2, 1)
    line = covidqa.as_text(args, words)
    assert str(tmp_path) not in line and "/models" not in line
    assert line.startswith("ds-rag train --config") and "--folds 5 --fold 2" in line and "--seed 1" in line
