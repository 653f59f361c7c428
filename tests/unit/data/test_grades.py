"""Graded relevance reaches nDCG: BEIR's scores are its gains."""

from __future__ import annotations

import json
from pathlib import Path

from ds_rag.data.dataset import build_table
from ds_rag.data.formats import read_corpus, read_rows
from ds_rag.evaluation.metrics import retrieval_metrics


def beir(folder: Path, scores: dict[str, int]) -> Path:
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": d, "text": f"text of {d}"}) for d in ("a", "b", "c")]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "what ?"}))
    rows = "\n".join(f"q\t{d}\t{s}" for d, s in scores.items())
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}\n")
    return folder


def read(folder: Path):
    rows = read_rows(folder, flag="--eval_data", need_answers=False)
    return build_table(read_corpus(folder), [], rows)


def ndcg(data, order: list[str]) -> float:
    qrels = [{data.ids[p]: g for p, g in row.qrels.items()} for row in data.evaluation]
    return retrieval_metrics([order], [[3.0, 2.0, 1.0]], qrels, corpus_size=3)["ndcg@10"]


def test_the_better_passage_first_is_the_better_ranking(tmp_path: Path) -> None:
    data = read(beir(tmp_path / "graded", {"a": 1, "b": 2}))
    assert data.evaluation[0].qrels == {0: 1, 1: 2}
    assert ndcg(data, ["b", "a", "c"]) == 1.0
    assert ndcg(data, ["a", "b", "c"]) < 0.9


def test_without_grades_each_positive_counts_alike(tmp_path: Path) -> None:
    data = read(beir(tmp_path / "plain", {"a": 1, "b": 1, "c": 0}))
    assert data.evaluation[0].grades == ()
    assert ndcg(data, ["b", "a", "c"]) == ndcg(data, ["a", "b", "c"]) == 1.0
