"""metrics.jsonl; what trackers are sent beside it is in test_trackers.py."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest

from ds_rag.run.metrics_file import Metrics
from ds_rag.runtime.command_exit import run_command


def test_metrics_are_a_line_each(tmp_path):
    for resumed_at in (None, 2):
        metrics = Metrics(tmp_path, resumed_at=resumed_at)
        metrics.write("step", 1, {"loss": 0.5})
        assert (tmp_path / "metrics.jsonl").read_text().endswith("}\n"), "written at once"
        metrics.write("evaluation", 2, {"recall@1": 1, "name": "x"})
        metrics.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == 2 * [
        {"kind": "step", "step": 1, "loss": 0.5},
        {"kind": "evaluation", "step": 2, "recall@1": 1, "name": "x"},
    ]
    Metrics(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_text() == "", "a new run starts anew"


def test_what_comes_after_the_step_that_is_resumed_is_taken_back(tmp_path):
    first = '{"kind": "train", "step": 3}\n{"kind": "eval", "step": 4}\n'
    torn = '{"kind": "train", "step": 5}\nnot json\n{"kind": "train", "ste'
    (tmp_path / "metrics.jsonl").write_text(first + torn)
    Metrics(tmp_path, resumed_at=4).close()
    assert (tmp_path / "metrics.jsonl").read_text() == first


def test_a_full_disk_while_lines_are_taken_back_leaves_all_of_them(tmp_path, monkeypatch):
    lines = '{"kind": "train", "step": 3}\n{"kind": "train", "step": 5}\n'
    (tmp_path / "metrics.jsonl").write_text(lines)

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            Metrics(tmp_path, resumed_at=4)
    assert (tmp_path / "metrics.jsonl").read_text() == lines and len(list(tmp_path.iterdir())) == 1
    Metrics(tmp_path, resumed_at=4).close()
    assert (tmp_path / "metrics.jsonl").read_text() == lines.splitlines(keepends=True)[0]


def test_metrics_without_a_folder_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metrics = Metrics(None)
    metrics.write("step", 1, {"loss": 0.5})
    metrics.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_without_a_traceback(tmp_path, monkeypatch, capsys):
    """By whichever rank it is; other errors of the system stay what they are."""

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("RANK", "1")
    metrics = Metrics(None)
    metrics.file = SimpleNamespace(write=lambda text: None, flush=full, name="run/metrics.jsonl")
    assert run_command(lambda: metrics.write("train", 1, {"loss": 1.0})) == 1
    told = capsys.readouterr().err
    assert "run/metrics.jsonl" in told and "No space left on device" in told and "--resume auto" in told
    with pytest.raises(OSError, match="No space"):
        run_command(lambda: metrics.write("train", 1, {"loss": 1.0}), debug=True)
    with pytest.raises(FileNotFoundError):
        run_command(lambda: print((tmp_path / "none").read_text()))
