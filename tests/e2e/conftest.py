from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import train

from ds_rag.data.almanac import make_world


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory) -> Path:
    """The built-in run, four steps of it."""
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    train(folder, "--max_steps", "4", "--refresh_index", "2", "--save_steps", "2")
    return folder


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Path:
    """A folder of small files: train.jsonl (labelled, with further candidates), dev.jsonl, passages.jsonl."""
    folder, world = tmp_path_factory.mktemp("rows"), make_world(1)
    table = []
    for row in world.train[:40]:
        positive, *others = row.passages
        table.append({"query": row.query, "answer": row.answers[0], "positive": positive, "passages": others})
    corpus = [{"id": p.id, "text": p.text} for p in world.corpus[:60]]

    def write(name: str, objects: list[dict]) -> None:
        (folder / name).write_text("".join(json.dumps(o) + "\n" for o in objects))

    write("train.jsonl", table)
    write("dev.jsonl", [{k: v for k, v in row.items() if k != "passages"} for row in table[:6]])
    write("passages.jsonl", corpus)
    return folder
