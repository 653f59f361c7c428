"""Two ranks open one run: its index serves both, an export on its way is moved by one of them, damage ends both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forked import start
from small import finished_run

from ds_rag.run import export
from ds_rag.runtime import atomic_folders


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished_run(tmp_path)


def evaluate(run: Path, world: int) -> tuple[list[int], str]:
    place = run.parent
    argv = ["evaluate", "--run", run, "--data", place / "rows.jsonl", "--corpus", place / "corpus.jsonl"]
    ranks = start([*argv, "--json", place / f"{world}.json"], world, where=place)
    return ranks.wait(), ranks.said()


def test_two_ranks_take_the_run_s_own_vectors_once_its_export_is_in_place(run: Path) -> None:
    names = json.loads((run / "manifest.json").read_text())["names"]
    pending = run / export.PENDING  # as after a kill at the first move
    pending.mkdir()
    for name in (*names, "manifest.json"):
        (run / name).rename(pending / name)
    codes, said = evaluate(run, 2)
    assert codes == [0, 0] and "which the same weights made" in said, said
    assert not pending.exists() and not (run / "lock").exists() and not export.damages_of_export(run)
    assert evaluate(run, 1)[0] == [0]
    assert json.loads((run.parent / "2.json").read_text()) == json.loads((run.parent / "1.json").read_text())


def test_damage_ends_both_with_one_message(run: Path) -> None:
    file = run / "generator/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    codes, said = evaluate(run, 2)
    assert codes == [2, 2] and said.count("generator/model.safetensors: found") == 1 and "Traceback" not in said
    assert atomic_folders.read_manifest(run) is not None
