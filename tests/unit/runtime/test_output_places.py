"""Places where commands write: looked at before the work, and written whole.

Variants: `--json` of every command that has it, `--out` of index, mine and merge, `--output_dir`; a folder, a file of
something else, below a file, too long a name and too long a path, a link into nowhere, in a circle and to a file, no
permission, a pipe, a standard stream, no path at all. What may not be read: data, a configuration, a run's files, model
weights (which safetensors calls missing). Permissions of what is written under two umasks.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bound import bound

from ds_rag.commands import cli
from ds_rag.commands.evaluate import command as evaluate
from ds_rag.commands.index import command as index
from ds_rag.commands.merge import command as merge
from ds_rag.commands.mine import command as mine
from ds_rag.models.from_settings import model_folder
from ds_rag.run import asking as ask
from ds_rag.run import open_saved
from ds_rag.runtime import atomic_folders, command_exit
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_file, check_json, check_place, follow_umask, umask, write_json, writing

RUN = ("--run", "nowhere")
JSON: dict[str, list[str]] = {
    "evaluate": ["evaluate", *RUN],
    "ask": ["ask", "nowhere", "why?"],
    "verify": ["verify", "nowhere"],
    "check": ["check", "rows.jsonl"],
    "mine": ["mine", *RUN, "--data", "rows.jsonl", "--out", "new.jsonl"],
    "plan": ["plan", "--retriever", "bge-base", "--generator", "qwen-7b"],
}
OUT: dict[str, list[str]] = {
    "index": ["index", *RUN, "--out"],
    "mine": ["mine", *RUN, "--data", "rows.jsonl", "--out"],
    "train": ["train", "--train_data", "rows.jsonl", "--output_dir"],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with things in the way; models and rows are not to be opened."""

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("the work has begun")

    for module in (ask, evaluate, merge, mine, index, open_saved):  # all imported by now: each has the name for itself
        monkeypatch.setattr(module, "open_saved", opened)
    monkeypatch.setattr("ds_rag.commands.check.command.check_rows", opened)
    monkeypatch.setattr("ds_rag.commands.plan.command.ways", opened)
    monkeypatch.setattr("ds_rag.commands.verify.command.findings_of", opened)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "thesis.txt").write_text("ten years")
    (tmp_path / "package.json").write_text('{"name": "mine"}')
    (tmp_path / "nowhere-link").symlink_to("/no/such/place")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0o555)
    return tmp_path


def kept(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() if f.is_file() else "" for f in sorted(folder.rglob("*"))}


IN_THE_WAY = {
    "folder": "a folder is there",
    "thesis.txt/x.json": "below a file",
    "x" * 300: "too long",
    "a/" * 2200 + "x": "too long",
    "nowhere-link": "not there",
    "circle": "in a circle",
    "circle/x": "in a circle",
    "locked/x.json": "no permission",
    "locked/new/x.json": "no permission",
    "": "no path",
}


@pytest.mark.parametrize("place", [*IN_THE_WAY, "thesis.txt", "package.json"], ids=lambda p: p[:12] or "none")
@pytest.mark.parametrize("command", JSON)
def test_where_json_cannot_be_written_shows_before_the_work(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, place: str
) -> None:
    before = kept(here)
    with bound():
        assert cli.main([*JSON[command], "--json", place]) == 2
    said = capsys.readouterr().err
    assert IN_THE_WAY.get(place, "another file is there") in said and "--json" in said and "Traceback" not in said
    assert kept(here) == before


@pytest.mark.parametrize("place", [p for p in IN_THE_WAY if p not in ("folder", "nowhere-link")], ids=lambda p: p[:12])
@pytest.mark.parametrize("command", OUT)
def test_where_nothing_can_be_made_shows_before_the_work(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, place: str
) -> None:
    before = kept(here)
    with bound():
        assert cli.main([*OUT[command], place.replace(".json", "-json")]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and ("--out" in said or "cannot be read or written" in said)
    assert kept(here) == before


def test_a_file_that_the_same_command_wrote_is_written_again(here: Path) -> None:
    write_json("scores.json", {"retrieval": {}, "setting": {}, "answers": {}})
    (here / "link.json").symlink_to("scores.json")
    (here / "scores.json").chmod(0o640)
    check_json("link.json", ("retrieval", "setting"))
    write_json("link.json", {"retrieval": 1})
    assert json.loads((here / "scores.json").read_text()) == {"retrieval": 1} and (here / "link.json").is_symlink()
    assert stat.S_IMODE((here / "scores.json").stat().st_mode) == 0o640
    with pytest.raises(UserError, match="another file"):
        check_json("scores.json", ("sound", "parts"))
    (here / "empty.json").touch()
    check_json("empty.json", ("sound",))


def test_a_pipe_and_a_standard_stream_are_written_and_stay(here: Path) -> None:
    os.mkfifo(here / "pipe")
    reader = os.open(here / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    check_json("pipe", ("a",))
    write_json("pipe", {"a": 1})
    assert json.loads(os.read(reader, 100)) == {"a": 1} and stat.S_ISFIFO((here / "pipe").stat().st_mode)
    os.close(reader)
    with (here / "out.txt").open("w") as stream:
        stream.write("said before\n")
        stream.flush()
        check_json(f"/proc/self/fd/{stream.fileno()}", ("a",))
        write_json(f"/dev/fd/{stream.fileno()}", {"a": 1})
    assert (here / "out.txt").read_text().startswith("said before\n{")


def test_after_an_error_what_was_there_still_is(here: Path) -> None:
    before = kept(here)
    with pytest.raises(ZeroDivisionError), writing(here / "thesis.txt") as stream:
        stream.write("half")
        raise ZeroDivisionError
    with pytest.raises(UserError, match="exists already"), writing(here / "thesis.txt", replace=False) as stream:
        stream.write("another job's")
    assert kept(here) == before


def test_a_file_of_ones_own_beside_the_new_one_is_left_alone(here: Path) -> None:
    """The name of an unfinished file is nobody else's."""
    for name in ("mined.jsonl.tmp", "mined.jsonl.new", "mined.jsonl.partial"):
        (here / name).write_text("mine")
    with writing(here / "mined.jsonl") as stream:
        stream.write("x")
    assert {(here / f"mined.jsonl.{end}").read_text() for end in ("tmp", "new", "partial")} == {"mine"}


def test_a_file_that_may_be_written_in_a_folder_that_may_not(here: Path) -> None:
    (here / "locked/own.json").write_text("{}")
    with bound():
        check_file("locked/own.json", "--json")
        write_json("locked/own.json", {"a": 1})
    assert json.loads((here / "locked/own.json").read_text()) == {"a": 1}


def test_names_beside_a_folder_fit_too(here: Path) -> None:
    check_place("x" * 200, "--out")
    with pytest.raises(UserError, match="too long"):
        check_place("x" * 230, "--out")
    check_file("x" * 250, "--json")
    write_json("x" * 250, {})


@pytest.fixture
def run_read(here: Path) -> Iterator[Callable[[str], None]]:
    """Asks for a file as any command might; nobody may read it."""

    def read(name: str) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("{}")
        (here / name).chmod(0)

    yield read


def test_what_may_not_be_read_is_a_message(
    here: Path, run_read: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Anywhere: an OSError that names a path becomes a message; others stay what they are."""
    run_read("notes.txt")
    with bound():
        assert command_exit.run_command(lambda: len(Path("notes.txt").read_text())) == 2
    assert "notes.txt cannot be read or written" in (said := capsys.readouterr().err) and "no permission" in said

    def nameless() -> int:
        raise PermissionError(1, "Operation not permitted")

    with pytest.raises(PermissionError):
        command_exit.run_command(nameless)


def test_weights_that_may_not_be_read_are_not_called_missing(here: Path, run_read: Callable[[str], None]) -> None:
    run_read("model/model.safetensors")
    (here / "model/config.json").write_text("{}")
    with bound(), pytest.raises(UserError, match=r"model\.safetensors cannot be read.*(.|\n)*no permission"):
        model_folder("model", "--retriever")


def test_a_manifest_that_may_not_be_read_is_not_called_damaged(here: Path, run_read: Callable[[str], None]) -> None:
    run_read("index/manifest.json")
    with bound(), pytest.raises(PermissionError):
        atomic_folders.damages(here / "index")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(here: Path, mask: int) -> None:
    from safetensors.torch import save_file

    before = os.umask(mask)
    try:
        assert umask() == mask
        save_file({"x": torch.zeros(1)}, here / "x.safetensors")
        follow_umask([here / "x.safetensors"])
        write_json("y.json", {})
    finally:
        os.umask(before)
    for name in ("x.safetensors", "y.json"):
        assert stat.S_IMODE((here / name).stat().st_mode) == 0o666 & ~mask


def test_a_report_of_the_users_own_is_not_written_over(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "run").mkdir()
    (here / "run/metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 1.0}\n')
    (here / "run/report.html").write_text("ten years")
    assert cli.main(["report", "run"]) == 2
    assert "another report.html" in capsys.readouterr().err and (here / "run/report.html").read_text() == "ten years"


@pytest.mark.parametrize("out", ["thesis.txt", "full", "run/retriever/merged", "locked/x", "thesis.txt/x"])
def test_merge_writes_over_nothing(here: Path, capsys: pytest.CaptureFixture[str], out: str) -> None:
    for name, text in (("full/chapter.txt", "x"), ("run/retriever/adapter_config.json", "{}")):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    (here / "run/config.json").write_text('{"train_data": "x", "retriever": "r", "generator": "g"}')
    before = kept(here)
    with bound():
        assert cli.main(["merge", "--run", "run", "--out", out]) == 2
    said = capsys.readouterr().err
    assert "--out" in said and "Traceback" not in said and kept(here) == before
