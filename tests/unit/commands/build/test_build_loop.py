"""The stages of a build, with stand-ins for the commands: which are run again, and what a failure leaves."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from ds_rag.commands.build import child, command
from ds_rag.commands.build.command import build, keep_earlier_run
from ds_rag.commands.build.options import Wanted
from ds_rag.commands.build.stages import Stage
from ds_rag.commands.build.state import read_state
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import RunError, UserError

COPY = "import sys; open(sys.argv[2], 'w').write(open(sys.argv[1]).read().upper()); open('ran', 'a').write(sys.argv[3])"
NEXT = {"chunk": ("source", "a"), "questions": ("a", "b"), "split": ("a", "c"), "train": ("b", "d")}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Four stages that copy files: chunk source -> a, questions a -> b, split a -> c, train b -> d."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").write_text("first")
    monkeypatch.setattr(child, "CLI", ())
    monkeypatch.setattr(command, "ORDER", tuple(NEXT))
    monkeypatch.setattr(command, "STAGES", {name: maker(name) for name in NEXT})
    (tmp_path / "out").mkdir()
    return tmp_path


def maker(name: str, code: str = COPY, outputs: tuple[str, ...] = ()):
    begin, end = NEXT[name]

    def make(wanted: Wanted) -> Stage:
        out = str(wanted.out / end)
        begins = begin if begin == "source" else str(wanted.out / begin)
        words = ("-c", code, begins, out, name[0])
        return Stage(name, f"from {begin} to {end}", words, (begins,), tuple(map(Path, outputs or (out,))))

    return make


def run(out: str = "out", retriever: str = "unknown") -> tuple[int, str]:
    """(exit code, the first letters of the stages that ran)."""
    Path("ran").write_text("")
    wanted = Wanted(("source",), Path(out), given={"retriever": retriever, "generator": "unknown"})
    code = build(wanted, read_state(wanted.out), Console(speaks=False))
    return code, Path("ran").read_text()


def test_only_what_has_changed_is_run_again(here):
    assert run() == (0, "cqst")
    assert run() == (0, "")
    (here / "source").write_text("first")  # another time, the same content
    assert run() == (0, "")
    (here / "source").write_text("second")
    assert run() == (0, "cqst") and (here / "out/d").read_text() == "SECOND"
    (here / "source").write_text("seconD")
    assert run() == (0, "c"), "what comes of it is as it was"
    (here / "out/b").write_text("edited by hand")
    assert run() == (0, "t") and (here / "out/d").read_text() == "EDITED BY HAND"
    (here / "out/c").unlink()
    assert run() == (0, "s")


def test_another_command_line_is_another_stage(here, monkeypatch):
    assert run() == (0, "cqst")
    monkeypatch.setitem(command.STAGES, "split", maker("split", COPY + "; 1"))
    assert run() == (0, "s")


def test_where_the_folder_lies_does_not_count(here):
    assert run() == (0, "cqst")
    (here / "out").rename(here / "moved")
    assert run("moved") == (0, "") and run(str(here / "moved")) == (0, "")


def test_a_failure_is_kept_and_the_next_call_goes_on_there(here, monkeypatch, capsys):
    monkeypatch.setitem(command.STAGES, "questions", maker("questions", "print('no such word'); raise SystemExit(3)"))
    assert run() == (3, "c")
    entry = read_state(here / "out").stages["questions"]
    assert (entry.state, entry.exit) == ("failed", 3)
    assert "no such word" in (here / "out/logs/questions.log").read_text()
    assert "no such word" in capsys.readouterr().out, "and it was shown"
    monkeypatch.setitem(command.STAGES, "questions", maker("questions"))
    assert run() == (0, "qst")


def test_an_interrupted_stage_is_run_again_and_keeps_its_time(here, monkeypatch):
    interrupted = "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    monkeypatch.setitem(command.STAGES, "train", maker("train", interrupted))
    assert run() == (130, "cqs")
    first = read_state(here / "out").stages["train"]
    assert (first.state, first.exit) == ("stopped", 130)
    assert run() == (130, ""), "the others are complete"
    assert read_state(here / "out").stages["train"].before == first.seconds


def test_a_stage_that_leaves_nothing_has_not_succeeded(here, monkeypatch):
    monkeypatch.setitem(command.STAGES, "split", maker("split", outputs=("out/nowhere",)))
    with pytest.raises(RunError, match="left no out/nowhere"):
        run()


def test_a_stage_that_is_not_needed_says_why(here, monkeypatch, capsys):
    monkeypatch.setitem(command.STAGES, "split", lambda wanted: Stage("split", "", skip="not needed: no rows"))
    wanted = Wanted(("source",), Path("out"), given={"retriever": "unknown", "generator": "unknown"})
    assert build(wanted, read_state(wanted.out), Console()) == 0
    said = capsys.readouterr().out
    assert "stage 3 of 4, split: not needed: no rows" in said and "stage 1 of 4, chunk: from source to a" in said


def test_a_stage_whose_command_knows_what_changed_is_always_run(here, monkeypatch):
    always = Stage("chunk", "", ("-c", COPY, "source", "out/a", "c"), ("source",), (Path("out/a"),), always=True)
    monkeypatch.setitem(command.STAGES, "chunk", lambda wanted: always)
    assert run() == (0, "cqst") and run() == (0, "c")


def test_what_a_stage_leaves_out_is_no_failure_of_it(here, monkeypatch, capsys):
    """As `ds-rag chunk` does where a file is broken: exit code 1, and its figures are written."""
    said = Path("out/found.json")
    for code, ends in ((f"{COPY}; open('{said}', 'w').write('x'); raise SystemExit(1)", 0), ("raise SystemExit(1)", 1)):
        words = ("-c", code, "source", "out/a", "c")
        stage = Stage("chunk", "", words, ("source",), (Path("out/a"),), partial=said)
        monkeypatch.setitem(command.STAGES, "chunk", lambda wanted, stage=stage: stage)
        assert run()[0] == ends
        assert said.exists() == (ends == 0)


def test_another_build_in_the_folder_is_refused(here, monkeypatch, capsys):
    from ds_rag.commands.cli import main

    words = ["build", "source", "--out", "out", "--retriever", "unknown", "--generator", "unknown"]
    descriptor = os.open("out/lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert main(words) == 2 and "another job works in this folder" in capsys.readouterr().err
    os.close(descriptor)
    monkeypatch.setattr(command, "conclude", lambda *_: None)
    assert main(words) == 0


def test_the_lock_lasts_as_long_as_the_stage(here, monkeypatch):
    """So that a build that is killed leaves no two processes in one folder."""
    held = "import fcntl, os; d = os.open('out/lock', os.O_RDWR); fcntl.flock(d, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    from ds_rag.runtime import folder_lock

    monkeypatch.setitem(command.STAGES, "chunk", maker("chunk", f"{held}; raise SystemExit(9)"))
    inherited = f"import os, sys; os.fstat({{}}); {COPY}"
    with folder_lock.holding(here / "out"):
        assert run()[0] == 1, "locked: BlockingIOError"
        descriptor = folder_lock.descriptor(here / "out")
        monkeypatch.setitem(command.STAGES, "chunk", maker("chunk", inherited.format(descriptor)))
        assert run() == (0, "cqst")
    assert folder_lock.descriptor(here / "out") is None


def test_a_folder_of_something_else_is_refused(here):
    (here / "out/thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="a folder of something else"):
        read_state(here / "out")
    (here / "out/build.json").write_text("[]")
    with pytest.raises(UserError, match="JSON object"):
        read_state(here / "out")


def test_a_run_on_other_rows_is_kept_beside_the_new_one(here):
    assert run() == (0, "cqst")
    entry = read_state(here / "out").stages["train"]
    trained, console = here / "out/run", Console(speaks=False)
    keep_earlier_run(trained, entry, "another", console)  # there is none
    trained.mkdir()
    (trained / "results.json").write_text(json.dumps({"steps": 3}))
    keep_earlier_run(trained, entry, entry.key, console)
    assert trained.exists(), "it is to be resumed"
    keep_earlier_run(trained, entry, "another", console)
    assert not trained.exists() and (here / "out/run-1/results.json").exists()
    trained.mkdir()
    (trained / "config.json").write_text("{}")
    keep_earlier_run(trained, None, "another", console)
    assert trained.exists(), "it never began"
