"""The small run of these tests and of benchmarks/soak.py: its rows and flags, and what two finished ones must share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ds_rag.data.almanac import make_world

STEPS, SAVE_STEPS, REFRESH = 8, 2, 4
SMALL = f"--max_steps {STEPS} --save_steps {SAVE_STEPS} --refresh_index {REFRESH} --per_device_train_batch_size 2"
SMALL += " --learning_rate 1e-3 --max_query_length 32 --max_passage_length 32 --max_answer_length 4"
SMALL += " --max_new_tokens 4 --candidates 4 --eval_answers false --adam_epsilon 1e-4 --pool rank"
EQUAL = ("retriever/model.safetensors", "generator/model.safetensors", "index/vectors.npy")


def write_rows(folder: Path) -> list[str]:
    """Labelled rows, held-out rows and a corpus, as files in `folder`; the flags that name them."""
    world = make_world(1)
    table = [
        {"query": r.query, "answer": r.answers[0], "positive": r.passages[0], "passages": list(r.passages[1:])}
        for r in world.train[:24]
    ]
    corpus = [{"id": p.id, "text": p.text} for p in world.corpus[:60]]
    files = {"train_data": table, "eval_data": table[:6], "corpus": corpus}
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [word for name in files for word in (f"--{name}", str(folder / f"{name}.jsonl"))]


def differences(run: Path, other: Path) -> list[str]:
    """In what two finished runs are not equal to the last bit: models, index, losses, figures."""
    found = [file for file in EQUAL if not same_bytes(run / file, other / file)]
    for kind, key in (("train", "loss"), ("eval", "mrr@10")):
        mine, wanted = lines(run, kind, key), lines(other, kind, key)
        if mine != wanted:
            found.append(f"{kind}/{key}: {mine} instead of {wanted}")
    return found


def same_bytes(file: Path, other: Path) -> bool:
    return file.is_file() and other.is_file() and file.read_bytes() == other.read_bytes()


def same(run: Path, other: Path) -> None:
    """Models, index, losses and figures of two finished runs are equal to the last bit."""
    assert not differences(run, other)


def lines(run: Path, kind: str, key: str) -> list[tuple[int, Any]]:
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[key]) for line in every if line["kind"] == kind]
