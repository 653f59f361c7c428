"""Which files are taken, under which names, and what is said of the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ds_rag.data.documents.walk import check_found, find_files
from ds_rag.runtime.errors import UserError


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")
    return folder


def test_files_and_what_is_left_out(tmp_path):
    docs = put(tmp_path / "docs", "b.md", "a/z.TXT", "a/x y\n.md", "é.html", "p.png", "README", ".git/x.md", ".b.md")
    put(docs, "node_modules/x/README.md", "c.png")
    found = find_files([docs])
    assert list(found.files) == ["a/x y\n.md", "a/z.TXT", "b.md", "é.html"]
    assert dict(found.unknown) == {".png": 2, "no suffix": 1} and found.hidden == 3


def test_links_are_not_followed(tmp_path):
    docs = put(tmp_path / "docs", "a.md")
    outside = put(tmp_path / "else", "b.md", "c.md")
    (docs / "out.md").symlink_to(outside / "b.md")
    (docs / "out").symlink_to(outside)
    (docs / "in.md").symlink_to(docs / "a.md")
    (docs / "circle").symlink_to(docs)
    found = find_files([docs])
    assert list(found.files) == ["a.md"] and sorted(found.links) == ["out", "out.md"]
    (tmp_path / "named").symlink_to(docs)
    assert list(find_files([tmp_path / "named"]).files) == ["a.md"], "a link that is named itself is meant"


def test_names_are_relative_to_what_the_places_have_in_common(tmp_path):
    put(tmp_path, "one/a.md", "two/in/b.md", "c.md")
    assert list(find_files([tmp_path / "one"]).files) == ["a.md"]
    assert list(find_files([tmp_path / "c.md"]).files) == ["c.md"]
    both = find_files([tmp_path / "two/in", tmp_path / "one", tmp_path / "one/a.md", tmp_path / "c.md"])
    assert list(both.files) == ["c.md", "one/a.md", "two/in/b.md"], "each file once"
    without = find_files([tmp_path], without=[tmp_path / "c.md"])
    assert list(without.files) == ["one/a.md", "two/in/b.md"]


def test_bytes_that_are_no_utf_8_in_a_name(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.md")).write_text("text")
    assert list(find_files([tmp_path]).files) == ["caf\\xe9.md"]


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.md")
    assert not find_files([tmp_path]).files


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        find_files([tmp_path / "gone"])
    put(tmp_path, "a.png", "b.png")
    with pytest.raises(UserError, match="no documents") as caught:
        check_found(find_files([tmp_path]))
    assert caught.value.found == "2 .png" and ".md" in str(caught.value.expected)
