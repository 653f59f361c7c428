"""A run whose retriever has a weight of BM25: its folder says so, and `ask` and `evaluate` read it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small import TEXTS, finished_run

from ds_rag.commands import cli
from ds_rag.config import DataConfig, ModelConfig
from ds_rag.index.lexical import LexicalIndex
from ds_rag.models.from_settings import open_retriever

QUESTION, WEIGHT = "in which pool grows kelp ?", 1.5


def asked(run: Path, place: Path, *flags: str) -> dict[str, dict[str, float]]:
    assert cli.main(["ask", str(run), QUESTION, "--top_k", "3", "--json", str(place), *flags]) == 0
    return {passage["text"]: passage for passage in json.loads(place.read_text())["passages"]}


def test_ask_and_evaluate_rank_by_the_sum(tmp_path: Path) -> None:
    run = finished_run(tmp_path, lexical_weight=WEIGHT)
    retriever = open_retriever(ModelConfig(retriever=str(run / "retriever")), DataConfig(), list, tmp_path).eval()
    assert float(retriever.lexical_weight) == pytest.approx(WEIGHT)
    with torch.no_grad():
        inner = (
            retriever.embed(retriever.tokens([QUESTION], "query"), "query")
            @ retriever.embed(retriever.tokens(TEXTS, "passage"), "passage").T
        )
    words = LexicalIndex(TEXTS).scores(QUESTION).astype(float)
    sums = inner[0].double().numpy() + 0.3 * WEIGHT * words / words.std()
    both, alone = asked(run, tmp_path / "a.json"), asked(run, tmp_path / "b.json", "--lexical_prior", "0")
    odds = np.exp(sums / 0.3)
    for n, text in enumerate(TEXTS):
        assert both[text]["score"] == pytest.approx(sums[n], abs=1e-5)
        assert both[text]["prior"] == pytest.approx(odds[n] / odds.sum(), rel=1e-4)
        assert alone[text]["score"] == pytest.approx(float(inner[0, n]), abs=1e-5)
    assert max(both.values(), key=lambda p: p["score"])["text"] == TEXTS[2]
    rows = tmp_path / "asked.jsonl"
    rows.write_text(json.dumps({"query": QUESTION, "answer": "nine", "positive": TEXTS[2]}) + "\n")
    file = tmp_path / "e.json"
    words_of = ["evaluate", "--run", str(run), "--data", str(rows), "--corpus", str(tmp_path / "corpus.jsonl")]
    assert cli.main([*words_of, "--eval_answers", "false", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["retrieval"]["mrr@10"] == 1.0 and "bm25 by its weight" in found["signature"]["similarity"]
