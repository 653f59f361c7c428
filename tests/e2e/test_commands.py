"""evaluate, index, ask and report on a saved run and on plain folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import call, reseal, results

from ds_rag.evaluation.per_question import read_per_question

RETRIEVAL = {"recall@1", "recall@5", "recall@10", "hit@1", "hit@5", "hit@10", "mrr@10", "ndcg@10"}
ANSWERS = {"exact_match", "f1", "rougeL"}


def ds_rag(*argv: str | Path, code: int = 0) -> str:
    """What the command printed; on success it must have nothing to say on standard error."""
    done = call(argv, code)
    if code == 0:
        assert done.stderr == ""
        for noise in ("WARN", "it/s", "[transformers]", "Traceback"):
            assert noise not in done.stdout
        return done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def test_evaluate_a_run_gives_the_figures_of_its_end(quickstart, tmp_path):
    printed = ds_rag("evaluate", "--run", quickstart, "--json", tmp_path / "scores.json")
    found = json.loads((tmp_path / "scores.json").read_text())
    assert set(found["retrieval"]) == RETRIEVAL and set(found["answers"]) == ANSWERS
    after = results(quickstart)["after"]
    assert found["retrieval"] | found["answers"] == pytest.approx(after, abs=1e-6)
    assert f"{after['mrr@10']:.3f}" in printed and "8 queries against 1600 passages" in printed


def test_evaluate_with_controls_and_other_decoding(quickstart, tmp_path):
    flags = ["--decode", "top1", "--controls", "--max_eval_samples", "4", "--top_k", "1"]
    printed = ds_rag("evaluate", "--run", quickstart, *flags, "--json", tmp_path / "scores.json")
    found = json.loads((tmp_path / "scores.json").read_text())
    beside = {"answer_in_context", "f1_in_context", "f1_not_in_context"}
    for block in ("answers_closed_book", "answers_gold_passage"):
        assert ANSWERS <= set(found[block]) <= ANSWERS | beside
    assert found["answers_closed_book"]["answer_in_context"] == 0.0 < found["answers_gold_passage"]["answer_in_context"]
    assert found["setting"]["queries"] == 4 and found["setting"]["stage"]["decode"] == "top1"
    assert "gold_passage" in printed


def test_evaluate_a_run_on_other_rows(quickstart, rows, tmp_path):
    flags = ["--data", rows / "dev.jsonl", "--corpus", rows / "passages.jsonl"]
    printed = ds_rag("evaluate", "--run", quickstart, *flags, "--json", tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text())["setting"]["queries"] == 6
    assert "warning: " in printed and "added to it" in printed  # labelled passages that the corpus lacks


def test_evaluate_plain_folders(quickstart, rows, tmp_path):
    """The run's own folders, without its configuration: the same retrieval, since the folder tells it all."""
    plain = [tmp_path / name for name in ("encoder", "lm")]
    for source, copy in zip(("retriever", "generator"), plain, strict=True):
        shutil.copytree(quickstart / source, copy)
    flags = ["--data", rows / "dev.jsonl"]
    ds_rag("evaluate", "--run", quickstart, *flags, "--json", tmp_path / "run.json")
    ds_rag("evaluate", "--retriever", plain[0], "--generator", plain[1], *flags, "--json", tmp_path / "plain.json")
    ds_rag("evaluate", "--retriever", plain[0], *flags, "--json", tmp_path / "alone.json")
    run, both, alone = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("run", "plain", "alone"))
    assert run["retrieval"] == both["retrieval"] == alone["retrieval"]
    assert set(both["answers"]) == ANSWERS and alone["answers"] == {}


def test_every_file_of_a_run_has_the_permissions_of_a_new_one(quickstart, tmp_path):
    """Models and checkpoints too, which libraries write for their owner alone."""
    (tmp_path / "new").touch()
    usual = (tmp_path / "new").stat().st_mode
    files = [f for f in quickstart.rglob("*") if f.is_file()]
    assert sum(f.suffix == ".safetensors" for f in files) > 4
    assert not [f for f in files if f.stat().st_mode != usual]


def test_evaluate_without_data_says_what_is_missing(quickstart):
    assert "--data" in ds_rag("evaluate", "--retriever", quickstart / "retriever", code=2)
    assert "no models" in ds_rag("evaluate", "--data", "x.jsonl", code=2)


def test_index_and_ask(quickstart, rows, tmp_path):
    """Another corpus, first beside the run's own index, then in its place."""
    run = tmp_path / "run"
    shutil.copytree(quickstart, run)
    ds_rag("index", "--run", run, "--corpus", rows / "passages.jsonl", "--out", tmp_path / "index")
    assert len(np.load(tmp_path / "index" / "vectors.npy")) == 60
    assert len(np.load(run / "index" / "vectors.npy")) == 1600
    flags = ["--index", tmp_path / "index", "--top_k", "3", "--json", tmp_path / "answer.json"]
    printed = ds_rag("ask", run, "who leads zor via ?", *flags)
    found = json.loads((tmp_path / "answer.json").read_text())
    assert found["question"] == "who leads zor via ?" and len(found["passages"]) == 3
    texts = {json.loads(line)["text"] for line in (rows / "passages.jsonl").read_text().splitlines()}
    assert {p["text"] for p in found["passages"]} <= texts
    scores = [p["score"] for p in found["passages"]]
    assert scores == sorted(scores, reverse=True)
    assert sum(p["prior"] for p in found["passages"]) == pytest.approx(1.0)
    assert found["answer_logprob"] < 0
    assert found["answer"] in printed and found["passages"][0]["id"] in printed
    printed = ds_rag("index", "--run", run, "--corpus", rows / "passages.jsonl", "--index_factory", "hnsw")
    assert "60 passages" in printed and "hnsw" in printed
    assert json.loads((run / "index/manifest.json").read_text())["factory"] == "hnsw"
    assert "passages" in ds_rag("ask", run, "who leads zor via ?")


def test_both_together_rank_alike_in_ask_and_evaluate(quickstart, tmp_path):
    """One rule of fusion: the first passages that `ask --hybrid bm25` reads are those of the evaluation's table."""
    flags = ["--hybrid", "bm25", "--top_k", "4"]
    ds_rag(
        "evaluate",
        "--run",
        quickstart,
        *flags,
        "--max_eval_samples",
        "4",
        "--eval_answers",
        "false",
        "--json",
        tmp_path / "all.json",
    )
    table = read_per_question(next(tmp_path.glob("all*.questions.parquet")))
    ds_rag("ask", quickstart, table.details["query"][0], *flags, "--json", tmp_path / "one.json")
    passages = json.loads((tmp_path / "one.json").read_text())["passages"]
    assert [p["id"] for p in passages] == table.retrieved[0][:4]
    assert [p["score"] for p in passages] == pytest.approx(table.scores[0][:4])
    ds_rag("ask", quickstart, table.details["query"][0], "--top_k", "4", "--json", tmp_path / "alone.json")
    alone = json.loads((tmp_path / "alone.json").read_text())["passages"]
    assert [p["score"] for p in alone] != pytest.approx([p["score"] for p in passages])


def test_ask_refuses_an_index_of_other_weights(quickstart, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(quickstart, run)
    settings = json.loads((run / "retriever/ds_rag.json").read_text())
    (run / "retriever/ds_rag.json").write_text(json.dumps(settings | {"pooling": "cls"}))
    assert "retriever/ds_rag.json: found" in ds_rag("ask", run, "who leads zor via ?", code=2)
    reseal(run)
    message = ds_rag("ask", run, "who leads zor via ?", code=2)
    assert "another model" in message and "ds-rag index" in message


def test_report_is_written_again(quickstart, tmp_path):
    run = tmp_path / "quickstart"
    shutil.copytree(quickstart, run)
    (run / "report.html").unlink()
    assert ds_rag("report", run).strip() == str(run / "report.html")
    assert (run / "report.html").read_text() == (quickstart / "report.html").read_text()
