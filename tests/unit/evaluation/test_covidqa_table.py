"""The table of benchmarks/covidqa.py: folds joined, methods compared, nothing of a method whose folds are missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

import covidqa
import folded_runs

QUESTIONS = 12  # of a fold, two articles of six


def write_piece(folder: Path, method: str, fold: int, evaluations: dict[str, dict[str, float]], seed: int = 0) -> None:
    """evaluations: when -> what the names of the metrics begin with -> the fraction of the questions that are right."""

    def found(shares: dict[str, float]) -> dict[str, Any]:
        right = {prefix: (np.arange(QUESTIONS) < share * QUESTIONS).astype(float) for prefix, share in shares.items()}
        return {
            "signature": {"data_hash": f"rows-{fold}", "corpus_hash": "windows"},
            "ids": [f"q{fold}-{n}" for n in range(QUESTIONS)],
            "documents": [f"article-{fold}-{n // 6}" for n in range(QUESTIONS)],
            "metrics": {p + name: values.tolist() for p, values in right.items() for name in folded_runs.METRICS},
        }

    piece = {"method": method, "fold": fold, "seed": seed, "minutes": 1.0}
    piece["evaluations"] = {when: found(shares) for when, shares in evaluations.items()}
    (folder / f"{method}-fold-{fold}-seed-{seed}.json").write_text(json.dumps(piece))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    before = {"bm25/": 0.5, "": 0.25, "hybrid/": 0.5}
    for fold in range(covidqa.FOLDS):
        for seed, share in enumerate((0.5, 1.0)):
            write_piece(tmp_path, "infonce_gold", fold, {"before": before, "after": {"": share, "hybrid/": 1.0}}, seed)
        write_piece(tmp_path, "reranked", fold, {"only": {"rerank_posterior/": 1.0, "rerank_likelihood/": 0.75}})
    return tmp_path


def test_lines_are_means_over_all_folds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    covidqa.table(folder)
    first = json.loads((folder / "comparison.json").read_text())["figures"]["recall@1"]
    assert (first["n"], first["documents"]) == (QUESTIONS * covidqa.FOLDS, 2 * covidqa.FOLDS)
    means = {name: system["mean"] for name, system in first["systems"].items()}
    assert means == pytest.approx(
        {
            "BM25": 0.5,
            "zero-shot": 0.25,
            "zero-shot + BM25": 0.5,
            "re-ranked, posterior": 1.0,
            "re-ranked, likelihood": 0.75,
            "InfoNCE with gold": 0.75,
            "InfoNCE with gold + BM25": 1.0,
        }
    )
    assert first["systems"]["InfoNCE with gold"]["seeds"] == pytest.approx([0.5, 1.0])
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("| InfoNCE with gold |"))
    assert "| 2 | 0.750 (" in line and "+0.500 (" in line and "+0.250 (" in line
    assert line.startswith("| InfoNCE with gold | 2 |")


def test_a_method_without_all_folds_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "infonce_gold-fold-3-seed-1.json").unlink()
    (folder / "reranked-fold-0-seed-0.json").unlink()
    covidqa.table(folder)
    systems = json.loads((folder / "comparison.json").read_text())["figures"]["recall@1"]["systems"]
    assert not [name for name in systems if name.startswith("re-ranked")]
    assert systems["InfoNCE with gold"]["seeds"] == [0.5], "the other seed is complete"


def test_commands_are_kept_without_this_machines_paths(tmp_path: Path) -> None:
    import argparse

    args = argparse.Namespace(
        data=tmp_path / "d", retriever="/models/e", generator=None, runs=tmp_path / "runs", teacher_cache=None
    )
    args.vectors = tmp_path / "v"
    words = covidqa.words_of(args, "infonce_gold", 2, 1, args.runs / "x")
    line = folded_runs.as_text(words, covidqa.names_of(args))
    assert str(tmp_path) not in line and "/models" not in line
    assert line.startswith("ds-rag train --config") and "--folds 5 --fold 2" in line and "--seed 1" in line
    assert "--vector_cache vectors" in line


def test_a_piece_that_is_there_is_not_made_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, made = folder / "reranked-fold-1-seed-0.json", []
    content = json.loads(there.read_text())
    there.unlink()

    def make(piece: folded_runs.Piece, scratch: Path) -> dict[str, Any]:
        assert scratch.is_dir()
        made.append(piece)
        return content

    pieces = [folded_runs.Piece("reranked", fold, 0) for fold in range(covidqa.FOLDS)]
    for _ in range(2):
        folded_runs.make_pieces(pieces, lambda method: folder, make, covidqa.LINES)
    assert made == [("reranked", 1, 0)] and json.loads(there.read_text()) == content
    assert capsys.readouterr().out.startswith("2/5 reranked-fold-1-seed-0: recall@1 of re-ranked, posterior 1.000; ")
