"""Rows 31 and 34: what a run's folder may be called, and one job at a time in it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import DS_RAG, ROOT, SMALL, TRAIN, call, environment, execute, train

from ds_rag.config.flags import parse
from ds_rag.run.output_dir import check_path, claim
from ds_rag.runtime import folder_lock
from ds_rag.runtime.errors import UserError

LITTLE = ["--refresh_index", "0", "--save_steps", "0", "--eval_answers", "false"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working directory, with a place beside it."""
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize(
    "path",
    [
        "run",
        "runs/one",
        "./runs/one/",
        "runs/../runs/one",
        "/scratch/me/runs/one",
        "/scratch/a/../b/one",
        "r" * 100,
        "runs/a b/one",
        "runs/2024-01-01_12.30",
        "runs/-x",
        "..run",
    ],
)
def test_row_31_names_that_are_taken(here, path):
    assert check_path(path) == Path(path)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("../../x", "leads out of the working directory"),
        ("runs/../../x", "leads out of the working directory"),
        ("runs/a\0b", "a NUL character"),
        ("runs/..", "is no name for a run"),
        (".", "is no name for a run"),
        ("", "is no name for a run"),
        ("/", "is no name for a run"),
        ("runs/a b", "is no name for a run"),
        ("runs/a;rm -rf x", "is no name for a run"),
        ("runs/\x1b[31m", "is no name for a run"),
        ("runs/$(id)", "is no name for a run"),
        ("runs/schön", "is no name for a run"),
        ("r" * 101, "is no name for a run"),
    ],
)
def test_row_31_names_that_are_refused(here, path, says):
    with pytest.raises(UserError, match=says):
        check_path(path)


def test_row_31_a_folder_that_is_a_link_to_another_place_is_refused(here):
    (here / "runs").mkdir()
    (here / "runs/one").symlink_to(here.parent / "elsewhere")
    with pytest.raises(UserError, match="symbolic link to another place") as caught:
        check_path("runs/one")
    assert f"--output_dir {here.parent / 'elsewhere'}" in str(caught.value)
    with pytest.raises(UserError, match="symbolic link"):
        check_path(str(here / "runs/one"))


def test_row_31_a_link_to_the_folder_beside_it_and_links_on_the_way_are_followed(here):
    (here / "runs").symlink_to(here.parent / "elsewhere")
    (here.parent / "elsewhere/one").mkdir()
    (here / "runs/latest").symlink_to("one")
    assert check_path("runs/two") == Path("runs/two") and check_path("runs/latest") == Path("runs/latest")


def test_row_31_through_the_real_command(tmp_path):
    for flag, says in (("../../x", "out of the working directory"), ("runs/a b", "no name for a run")):
        refused = execute([*DS_RAG, "train", "--output_dir", flag], 2, cwd=tmp_path).stderr
        assert says in refused and "--output_dir" in refused and "Traceback" not in refused
    (tmp_path / "recipe.yaml").write_text('train_data: builtin\noutput_dir: "runs/a\\0b"\n')
    refused = execute([*DS_RAG, "train", "--config", "recipe.yaml"], 2, cwd=tmp_path).stderr
    assert "NUL" in refused and "Traceback" not in refused
    assert [f.name for f in tmp_path.iterdir()] == ["recipe.yaml"] and not (tmp_path.parent.parent / "x").exists()


def holder_of(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder until it is ended."""
    code = "import sys, time; from pathlib import Path; from ds_rag.runtime import folder_lock; "
    code += "folder_lock.hold(Path(sys.argv[1]))"
    env = environment(SLURM_JOB_ID="4711")
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print('held', flush=True); time.sleep(300)", str(folder)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def held(tmp_path):
    """(folder, process) of a folder with a holder."""
    (tmp_path / "run").mkdir()
    process = holder_of(tmp_path / "run")
    yield tmp_path / "run", process
    process.kill()
    process.wait()


def test_row_34_two_trainings_in_one_folder(tmp_path):
    """The real command, twice at once: the second names the first, and leaves it alone."""
    run = tmp_path / "run"
    argv = [*TRAIN, "--output_dir", str(run), *SMALL, *LITTLE, "--max_steps", "200"]
    first = subprocess.Popen(argv, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if (run / "config.json").exists():
                break
            time.sleep(0.1)
        for resume in ("never", "auto"):
            refused = train(run, *LITTLE, "--resume", resume, code=2).stderr
            assert "another job works in this folder" in refused and "Traceback" not in refused
            assert f"process {first.pid} on {socket.gethostname()}" in refused
        assert first.poll() is None
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert (run / "lock").exists(), "what a dead one leaves behind"
        execute([*TRAIN, "--output_dir", run, *SMALL, *LITTLE, "--max_steps", "1", "--resume", "auto"])
        assert not (run / "lock").exists(), "it goes with its holder"
    finally:
        first.kill()
        first.wait()


def test_row_34_indexing_into_a_run_that_is_being_trained(short_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    process = holder_of(run)
    try:
        refused = call(["index", "--run", run], 2).stderr
        assert f"process {process.pid} on" in refused and "job 4711, since" in refused
        assert json.loads((run / "index/manifest.json").read_text())["count"] == 1600
        call(["index", "--run", run, "--out", tmp_path / "index"])  # beside it: no quarrel
    finally:
        process.kill()
        process.wait()
    call(["index", "--run", run])
    assert not (run / "lock").exists()


def test_row_34_the_second_is_refused_and_the_stale_lock_of_a_dead_one_is_not(held):
    folder, process = held
    with pytest.raises(UserError, match=f"process {process.pid} on .*, job 4711"):
        folder_lock.hold(folder)
    process.kill()
    process.wait()
    assert (folder / "lock").exists() and folder_lock.hold(folder)
    assert json.loads((folder / "lock").read_text())["pid"] == os.getpid()
    assert folder_lock.hold(folder), "again"
    folder_lock.release(folder)
    assert not (folder / "lock").exists()


def test_row_34_the_lock_does_not_make_a_folder_full(here):
    (here / "run").mkdir()
    (here / "run/lock").write_text(json.dumps({"host": "of a dead one", "pid": 1}))
    claim(parse(["--train_data", "rows.csv", "--output_dir", "run"]))
    assert {f.name for f in (here / "run").iterdir()} == {"lock", "config.json"}
    folder_lock.release(here / "run")


def test_row_34_what_is_refused_for_another_reason_gets_no_lock(here):
    (here / "thesis").mkdir()
    (here / "thesis/chapter.txt").write_text("")
    with pytest.raises(UserError, match="not empty"):
        claim(parse(["--train_data", "rows.csv", "--output_dir", "thesis"]))
    assert [f.name for f in (here / "thesis").iterdir()] == ["chapter.txt"]


def test_row_34_a_holder_whose_name_is_not_there_yet(tmp_path):
    descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="has not given its name"):
        folder_lock.hold(tmp_path)
    os.close(descriptor)


def test_row_34_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(folder_lock.fcntl, "flock", no_locks)
    assert folder_lock.hold(tmp_path) is False


def test_row_34_a_lock_file_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "target").write_text("keep me")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/lock").symlink_to(tmp_path / "target")
    with pytest.raises(UserError, match="cannot be written"):
        folder_lock.hold(tmp_path / "run")
    assert re.fullmatch("keep me", (tmp_path / "target").read_text())
