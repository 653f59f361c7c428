"""An index replaces nothing but an index of ours that nobody holds; and what is cleared is only what we made.

Variants of what is in the way: a folder of the user's, a file, the run itself, names that a run uses, a user's file
within an index, a folder with files of an index's names but no manifest, a checkpoint, a user's INDEX.partial,
INDEX.tmp-NOTES, a dated copy.
Ways to a held run's index: by default, `--out R/index`, through `..`, a link to the run, a link to the index, another
run's. Links of the index's place to another place: kept, and followed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds_rag.commands import cli
from ds_rag.commands.index import command as index
from ds_rag.index.building import Built, EncodedShard
from ds_rag.index.corpus_index import CorpusIndex
from ds_rag.index.faiss_index import FaissIndex
from ds_rag.index.store import Manifest
from ds_rag.run import checkpoint
from ds_rag.run.publish_index import publish
from ds_rag.runtime import atomic_folders, folder_lock
from ds_rag.runtime.errors import RunError, UserError
from ds_rag.runtime.own_files import CHECKPOINT

ROOT = Path(__file__).resolve().parents[3]
CONFIG = json.dumps({"train_data": "x", "retriever": "r", "generator": "g"})


class Began(Exception):
    """The command got as far as opening models."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a run in it; models are not to be opened."""

    def opened(*_: Any) -> None:
        raise Began

    monkeypatch.setattr(index, "open_saved", opened)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/retriever").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(CONFIG)
    return tmp_path


def index_at(place: Path, text: str = "old", kind: str = "index") -> Path:
    part = atomic_folders.begin(place)
    (part / "ids.json").write_text(text)
    atomic_folders.seal(part, place, {"kind": kind})
    return place


def kept(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() if f.is_file() else "" for f in sorted(folder.rglob("*"))}


def put(file: Path, text: str = "ten years") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def in_the_way(here: Path, what: str) -> str:
    """Makes it; what `--out` then is."""
    if what == "a thesis":
        put(here / "thesis/chapter.txt")
    elif what == "a file":
        put(here / "thesis")
    elif what == "the run":
        return "run"
    elif what == "a run's models":
        return "run/retriever/index"
    elif what.startswith("run/"):  # a name that the run itself may use
        return what
    elif what == "notes in an index":
        put(index_at(here / "thesis") / "notes.txt")
    elif what == "notes in the run's index":
        put(index_at(here / "run/index") / "notes.txt")
        return "run/index"
    elif what == "an index of another tool":
        put(here / "thesis/index.faiss")
    elif what == "a checkpoint":
        index_at(here / "thesis", kind="checkpoint")
    elif what == "a draft beside":
        put(here / "thesis.partial/chapter.txt")
    elif what == "a file beside":
        put(here / "thesis.partial")
    elif what == "a lock of something else":
        put(here / f"thesis{folder_lock.BESIDE}")
    return "thesis"


WAYS = ["a thesis", "a file", "the run", "a run's models", "notes in an index", "notes in the run's index"]
WAYS += ["an index of another tool", "a checkpoint", "a draft beside", "a file beside", "a lock of something else"]
WAYS += ["run/export.pending", "run/index.partial", f"run/index.tmp-{'a' * 32}", "run/refresh", "run/report.html"]


@pytest.mark.parametrize("what", WAYS)
def test_what_is_in_the_way_is_an_error_before_any_work(
    here: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    out = in_the_way(here, what)
    before = kept(here)
    assert cli.main(["index", "--run", "run", "--out", out]) == 2
    assert "Traceback" not in capsys.readouterr().err and kept(here) == before


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "an index", "the run's", "a damaged one of the run's"])
def test_what_may_be_replaced(here: Path, what: str) -> None:
    out = here / ("run/index" if "run's" in what else "new")
    if what == "an empty folder":
        out.mkdir()
    elif what != "nothing":
        index_at(out)
    if "damaged" in what:
        (out / "manifest.json").write_text("cut")
    put(out.with_name(f"{out.name}.partial") / "shard-0-of-1.npy")  # of a call that was stopped
    with pytest.raises(Began):
        cli.main(["index", "--run", "run", "--out", str(out)])
    assert not list(out.parent.glob(f"*{folder_lock.BESIDE}")) and not (here / "run/lock").exists()


@pytest.fixture
def holder(here: Path) -> Any:
    """Another process that holds the run."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path;"
    code += "from ds_rag.runtime import folder_lock; folder_lock.hold(Path('run'));"
    code += "print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_run_that_is_held_is_asked_by_whatever_way_its_index_is_reached(
    here: Path, holder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "other/retriever").mkdir(parents=True)
    (here / "other/config.json").write_text(CONFIG)
    (here / "alias").symlink_to("run")
    (here / "link").symlink_to("run/index")
    (here / "other/index").symlink_to(here / "run/index")
    index_at(here / "run/index")
    ways = [[], ["--out", "run/index"], ["--out", "other/../run/index/"], ["--out", str(here / "alias/index")]]
    ways += [["--out", "link"]]
    for way in ways:
        assert cli.main(["index", "--run", "run", *way]) == 2, way
        assert f"process {holder.pid}" in capsys.readouterr().err
    assert cli.main(["index", "--run", "other"]) == 2, "its index is the held run's"
    for way in (["--out", "elsewhere"], ["--out", "run/another"]):
        with pytest.raises(Began):
            cli.main(["index", "--run", "run", *way])


def test_two_at_the_same_place_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second is refused while the first works, and not after it."""
    child = os.fork()
    if not child:
        with index.claim_place(here / "new"):
            (here / "claimed").touch()
            signal.pause()
    try:
        while not (here / "claimed").exists():
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
        assert cli.main(["index", "--run", "run", "--out", "new"]) == 2
        assert f"process {child}" in capsys.readouterr().err
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with pytest.raises(Began):
        cli.main(["index", "--run", "run", "--out", "new"])


def write(folder: Path, text: str) -> None:
    """An index of one passage, published."""
    import faiss

    vectors = np.ones((1, 2), np.float32)
    flat = faiss.IndexFlatIP(2)
    flat.add(vectors)
    share = EncodedShard(np.arange(1), vectors, np.zeros(1))
    built = Built(CorpusIndex([type("Part", (), {"index": FaissIndex(flat)})()], 1), share, vectors)
    publish(folder, built, [text], [text], Manifest("m", 1, 2, "flat", True, "mean", "c"))


@pytest.mark.parametrize("exchange", [True, False], ids=["in one step", "in two"])
def test_a_link_to_another_disk_stays_and_what_it_leads_to_is_replaced(
    here: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic_folders, "exchange", lambda one, other: False)
    (here / "disk").mkdir()
    write(here / "disk/idx", "old")
    (here / "run/index").symlink_to(here / "disk/idx")
    write(here / "run/index", "new")
    assert (here / "run/index").is_symlink() and json.loads((here / "disk/idx/ids.json").read_text()) == ["new"]
    assert sorted(f.name for f in (here / "run").iterdir()) == ["config.json", "index", "retriever"]
    assert [f.name for f in (here / "disk").iterdir()] == ["idx"] and not atomic_folders.damages(here / "run/index")


def test_what_came_there_while_it_was_made_stays(here: Path) -> None:
    put(here / "new/chapter.txt")
    with pytest.raises(RunError, match="not replaced by an index"):
        write(here / "new", "x")
    assert kept(here / "new") == {"chapter.txt": "ten years"}
    put(here / "file")
    with pytest.raises(RunError, match="a file"):
        write(here / "file", "x")


@pytest.mark.parametrize("name", ["index.tmp-notes", "index.tmp-20241128", "index.tmp-old-stuff", "index.tmp-"])
def test_folders_of_the_users_that_are_only_named_like_ours_stay(here: Path, name: str) -> None:
    put(here / name / "chapter.txt")
    ours = atomic_folders.begin(here / "index")
    put(here / "index.tmp-1234abcd/ids.json")  # as the version before called its own
    atomic_folders.put_back(here / "index")
    assert not (here / "index").exists()
    index_at(here / "index")
    assert (here / name / "chapter.txt").exists() and not ours.exists()
    assert sorted(f.name for f in here.iterdir()) == sorted(["index", name, "run"])


def test_a_users_files_among_checkpoints_stay(here: Path) -> None:
    for step in (1, 2, 3, 4):
        put(index_at(here / f"run/checkpoints/step-{step}", kind="checkpoint") / "state.json", "{}")
    put(here / "run/checkpoints/step-1/notes.txt")
    put(here / "run/checkpoints/abandoned-ideas/notes.txt")
    put(here / "run/checkpoints/step-9.tmp-backup/notes.txt")
    checkpoint.tidy(here / "run", here / "run/checkpoints/step-4")
    checkpoint.prune(here / "run", 2, None)
    notes = sorted(f.parent.name for f in here.rglob("notes.txt"))
    assert len(notes) == 3 and notes[0] == "abandoned-ideas" and notes[1].startswith("kept-step-1-")
    assert [f.name for f in checkpoint.checkpoints(here / "run")] == ["step-3", "step-4"]
    assert atomic_folders.strangers(here / "run/checkpoints/step-4", CHECKPOINT) == []


def test_a_lock_of_something_else_is_not_written_over(here: Path) -> None:
    put(here / "run/lock", "my keys")
    with pytest.raises(UserError, match="not a lock of ds_rag"):
        folder_lock.hold(here / "run")
    assert (here / "run/lock").read_text() == "my keys"
