"""Putting a folder in the place of another: the one or the other is there, whatever happens in between."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ds_rag.commands.verify.command import findings_of
from ds_rag.index.store import read_index
from ds_rag.runtime import atomic_folders, fault_injection
from ds_rag.runtime.errors import UserError


def put(final: Path, text: str) -> None:
    part = atomic_folders.begin(final)
    (part / "text").write_text(text)
    atomic_folders.seal(part, final, {"kind": "index"})


@pytest.fixture
def index(tmp_path: Path) -> Path:
    put(tmp_path / "index", "old")
    return tmp_path / "index"


def names(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


@pytest.fixture(params=["in one step", "in two"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in two":
        monkeypatch.setattr(atomic_folders, "exchange", lambda one, other: False)


def test_a_new_one_replaces_the_old(index: Path, either_way: None) -> None:
    put(index, "new")
    assert (index / "text").read_text() == "new" and not atomic_folders.damages(index)
    assert names(index.parent) == ["index"]


def test_two_folders_change_places(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not atomic_folders.exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("not on this file system")
    assert names(tmp_path / "one") == ["other"] and names(tmp_path / "other") == ["one"]
    assert not atomic_folders.exchange(tmp_path / "one", tmp_path / "none") and names(tmp_path) == ["one", "other"]


def killed_between_the_renames(index: Path) -> None:
    child = os.fork()
    if not child:
        try:
            atomic_folders.exchange = lambda one, other: False
            os.environ["DS_RAG_FAULT"] = "between_renames:0:kill"
            put(index, "new")
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not index.exists() and len(atomic_folders.partials(index.parent)) == 2


def read(index: Path) -> None:
    with pytest.raises(UserError, match="not an index's manifest"):  # so it was found, and is sound
        read_index(index, "")


@pytest.mark.parametrize("then", [read, lambda index: findings_of(index.parent), findings_of])
def test_killed_between_the_renames_the_old_one_is_put_back(index: Path, then: Callable[[Path], object]) -> None:
    killed_between_the_renames(index)
    then(index)
    assert (index / "text").read_text() == "old" and not atomic_folders.damages(index)


def test_what_is_begun_next_puts_the_old_one_back_too(index: Path) -> None:
    killed_between_the_renames(index)
    part = atomic_folders.begin(index)
    assert (index / "text").read_text() == "old" and names(index.parent) == ["index", part.name]


def test_where_the_second_rename_fails_the_old_one_serves(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(name: str) -> None:
        if name == "between_renames":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_folders, "exchange", lambda one, other: False)
    monkeypatch.setattr(fault_injection, "point", full)
    with pytest.raises(OSError, match="No space"):
        put(index, "new")
    assert (index / "text").read_text() == "old" and names(index.parent) == ["index"]


def test_what_is_begun_leaves_that_of_a_longer_name(tmp_path: Path) -> None:
    own, other = atomic_folders.begin(tmp_path / "idx"), atomic_folders.begin(tmp_path / "idx2")
    again = atomic_folders.begin(tmp_path / "idx")
    assert names(tmp_path) == sorted([again.name, other.name]) and own != again
