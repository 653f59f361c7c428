"""A run on few rows, labelled by passage id, with `--num_train_epochs auto`: held-out rows end it, the best is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import call


@pytest.mark.slow  # 15 s CPU
def test_a_run_on_few_rows_stops_early_and_exports_its_best(tmp_path: Path) -> None:
    """Labels of another question's passage: training makes it worse, so that the first weights stay the best."""
    names = [f"{a}{b}" for a in ("zor", "via", "mel", "kel") for b in ("na", "ta", "ri", "so", "lu")]
    texts = [f"{name} is led by ann {name}" for name in names]
    corpus = [{"id": name, "text": text} for name, text in zip(names, texts, strict=True)]
    rows: list[dict[str, Any]] = [{"query": f"who leads {n} ?", "answer": "ann", "positive_ids": n} for n in names]
    wrong = [row | {"positive_ids": names[-1 - n]} for n, row in enumerate(rows)]
    for name, objects in (("corpus", corpus), ("train", wrong), ("dev", rows)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(o) + "\n" for o in objects))
    run = tmp_path / "run"
    words = ["train", "--train_data", tmp_path / "train.jsonl", "--eval_data", tmp_path / "dev.jsonl"]
    words += ["--corpus", tmp_path / "corpus.jsonl", "--objective", "infonce", "--per_device_train_batch_size", "4"]
    words += ["--num_train_epochs", "auto", "--warmup_ratio", "0.1", "--learning_rate", "5e-2", "--output_dir", run]
    said = " ".join(call(words).stdout.split())
    assert "20 held-out questions: too few to see any difference" in said and "see a difference of 5 points" in said
    assert "10 epochs of 5.0 steps: 50 steps" in said and "stops after 3 without a better recall@1" in said
    found = json.loads((run / "results.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    judged = {line["step"]: line["recall@1"] for line in lines if line["kind"] == "eval"}
    best = max(judged, key=lambda step: (judged[step], -step))
    assert found["best_step"] == best and found["steps"] < 50, "5 steps an epoch, 10 epochs at most"
    assert all(step % 5 == 0 for step in judged) and found["after"]["recall@1"] == pytest.approx(judged[best])
