"""Small runs of the real command, and when two of them are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SMALL = "--max_steps 8 --save_steps 2 --refresh_index 4 --per_device_train_batch_size 2 --learning_rate 1e-3"
SMALL += " --max_query_length 32 --max_passage_length 32 --max_answer_length 4 --max_new_tokens 4 --candidates 4"
SMALL += " --eval_answers false --adam_epsilon 1e-4 --pool rank"


def same(run: Path, other: Path) -> None:
    """Models, index, losses and figures of two finished runs are equal to the last bit."""
    for file in ("retriever/model.safetensors", "generator/model.safetensors", "index/vectors.npy"):
        assert (run / file).read_bytes() == (other / file).read_bytes(), file
    assert lines(run, "train", "loss") == lines(other, "train", "loss")
    assert lines(run, "eval", "mrr@10") == lines(other, "eval", "mrr@10")


def lines(run: Path, kind: str, key: str) -> list[tuple[int, Any]]:
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[key]) for line in every if line["kind"] == kind]
