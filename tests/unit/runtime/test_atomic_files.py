"""A file that is replaced is the old one or the new one, at every moment."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ds_rag.runtime import stop_signals
from ds_rag.runtime.atomic_files import replacing, write_complete
from ds_rag.runtime.own_files import CHECKPOINT, RUN, SHARDS, strangers_by_name


def test_the_old_content_stands_until_the_block_ends(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("old")
    with replacing(file) as stream:
        stream.write("new")
        stream.flush()
        assert file.read_text() == "old" and (tmp_path / "a.json.tmp").read_text() == "new"
    assert file.read_text() == "new" and [f.name for f in tmp_path.iterdir()] == ["a.json"]


def test_after_an_error_the_old_content_stands_and_nothing_is_left(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(file, tmp_path / "beside") as stream:
        stream.write("half")
        assert (tmp_path / "beside").exists()
        raise KeyboardInterrupt
    assert file.read_text() == "old" and [f.name for f in tmp_path.iterdir()] == ["a.json"]


def test_a_rename_that_fails_leaves_the_old_content(tmp_path):
    (tmp_path / "a").mkdir()  # no file takes a folder's name
    with pytest.raises(OSError):
        write_complete(tmp_path / "a", "new")
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


def test_what_a_crash_left_is_overwritten(tmp_path):
    (tmp_path / "a.tmp").write_text("a much longer text of before")
    write_complete(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new" and not (tmp_path / "a.tmp").exists()


def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched(descriptor: int) -> None:
        done.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def renamed(part: Path, file: Path) -> None:
        done.append("rename")
        replace(part, file)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "replace", renamed)
    write_complete(tmp_path / "a", "text")
    assert done == ["sync file", "rename", "sync folder"]


def test_what_a_crash_leaves_beside_our_files_is_known_as_ours(tmp_path):
    """Else a run's folder would count as holding files of the user's, and would not be resumed or replaced."""
    names = ["config.json.tmp", "exit.json.tmp", "metrics.jsonl.tmp", "checkpoints/LATEST.tmp"]
    for name in [*names, "refresh/step-2/shard-0-of-1.json.tmp", f"checkpoints/LATEST.tmp-{'a' * 32}"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert strangers_by_name(tmp_path, RUN) == []
    assert strangers_by_name(tmp_path / "refresh/step-2", SHARDS) == [] != strangers_by_name(tmp_path, CHECKPOINT)


def test_the_last_word_is_left_so_and_forgotten_with_what_is_beside_it(tmp_path):
    stop_signals.leave_word(tmp_path, "SIGTERM", 3)
    assert stop_signals.last_word(tmp_path)["step"] == 3  # type: ignore[index]
    (tmp_path / "exit.json.tmp").touch()
    stop_signals.forget(tmp_path)
    assert not list(tmp_path.iterdir())
