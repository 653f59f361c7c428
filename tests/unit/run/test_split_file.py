"""A run's folds.json: kept, refused where it is damaged, and absent from runs of before."""

from __future__ import annotations

import json

import pytest

from ds_rag.config import build
from ds_rag.data.splits import FOLDS, Split, SplitOptions
from ds_rag.run.split_file import FILE, keep_whole, read_split, split_of_run, write_split
from ds_rag.runtime import atomic_folders
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.own_files import RUN, strangers_by_name


def test_a_split_is_kept_beside_its_run_and_found_from_its_checkpoints(tmp_path):
    split = Split(SplitOptions(FOLDS, 3, 1), {"é": 2, "b": 0}, {"who ?": 1})
    run, other = tmp_path / "run", tmp_path / "other"
    checkpoint = run / "checkpoints" / "step-3"
    checkpoint.mkdir(parents=True)
    other.mkdir()
    assert split_of_run(run, None) is None is read_split(None)
    write_split(run, None)
    assert not (run / FILE).exists()
    write_split(run, split)
    assert read_split(run) == split_of_run(run, None) == split_of_run(other, checkpoint) == split
    assert strangers_by_name(run, RUN) == []  # a run's own file, which a new run may replace
    write_split(other, Split(SplitOptions(FOLDS, 3, 2)))
    assert split_of_run(other, checkpoint).wanted.fold == 2
    (run / FILE).write_text('{"kind": "folds"')
    with pytest.raises(UserError, match="cut short"):
        read_split(run)


@pytest.mark.parametrize(
    "then,flags,left",
    [({}, set(), 0.0), ({"eval_fraction": 0.1}, set(), 0.1), ({}, {"eval_fraction"}, 0.1)],
    ids=["of before", "of today", "asked for by flag"],
)
def test_a_run_of_before_goes_on_with_all_its_rows(then, flags, left, monkeypatch, tmp_path):
    monkeypatch.setattr(atomic_folders, "read_manifest", lambda folder: {"config": then})
    config = build({"train_data": "rows.jsonl", "eval_fraction": 0.1}, frozenset({"eval_fraction"}), frozenset(flags))
    said: list[str] = []
    keep_whole(tmp_path, config, said.append)
    assert config.data.eval_fraction == left and len(said) == (left == 0.0)
    assert json.dumps(said).count("goes on so") == (left == 0.0)
