"""benchmarks/covidqa_folds.py on the real data: its counts, and the folds that the library gives for its rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ds_rag.config import DataConfig
from ds_rag.data.dataset import read_data
from ds_rag.runtime.errors import UserError

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))
import covidqa_folds


def test_both_splits_are_one_folder_of_whole_articles(shared_dir, tmp_path):
    found = covidqa_folds.join(shared_dir / "data/covidqa", tmp_path, 5)
    assert {name: found[name] for name in covidqa_folds.EXPECTED} == covidqa_folds.EXPECTED
    assert sorted(found["questions of each fold"]) == [208, 208, 208, 208, 209]
    assert found["effective number of articles"] == 39.8
    written = json.loads((tmp_path / "folds.json").read_text())
    files = {"train_data": str(tmp_path / "rows.jsonl"), "corpus": str(tmp_path / "corpus.jsonl")}
    data = read_data(DataConfig(**files, folds=5, fold=3), builtin=False)
    assert data.split and data.split.documents == written["documents"] and len(written["documents"]) == 81
    assert (len(data.train), len(data.evaluation), data.corpus_size) == (833, 208, 2861)
    passage = data.passage(data.evaluation[0].positives[0])
    assert passage.id == f"{passage.document}-{passage.place}" and passage.document == data.row_document(
        data.evaluation[0]
    )
    qrels = (tmp_path / "qrels.tsv").read_text().splitlines()
    assert len(qrels) == 1042


def test_other_data_is_refused(shared_dir, monkeypatch, tmp_path):
    monkeypatch.setitem(covidqa_folds.EXPECTED, "windows", 2860)
    with pytest.raises(UserError, match="not the COVID-QA"):
        covidqa_folds.join(shared_dir / "data/covidqa", tmp_path, 5)
