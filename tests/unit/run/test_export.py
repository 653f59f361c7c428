"""What a run leaves takes the place of what was there all together, whatever happens in between.

Variants: a kill at every point of an export, the first and one over an earlier; a second kill while the first is made
good; a run of the version before; files of the user's own in the places, links, a changed card; another job at work; a
folder that cannot be written; a manifest that is damaged or gone; damage of each kind of file.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ds_rag.commands.verify.command import findings_of
from ds_rag.index.store import hash_model
from ds_rag.run import config_and_results, export
from ds_rag.runtime import atomic_folders, fault_injection, folder_lock
from ds_rag.runtime.errors import UserError

FILES = ("retriever/weights.bin", "generator/weights.bin", "index/text", "results.json", "config.json")
MODELS = ("retriever", "generator")


def leave(run: Path, text: str, models: tuple[str, ...] = MODELS) -> None:
    """As a run does at its end."""
    with export.staged(run) as place:
        for name in models:
            (place / name).mkdir()
            (place / name / "weights.bin").write_text(text)
            (place / name / "README.md").write_text(f"card {text}")
            fault_injection.point("export_model")
        part = atomic_folders.begin(place / "index")
        (part / "text").write_text(text)
        atomic_folders.seal(part, place / "index", {"kind": "index", "model_hash": hash_model(place / "retriever")})
        (place / "results.json").write_text(json.dumps({"after": {"mrr": 1.0}, "of": text}))
        (place / "config.json").write_text(json.dumps({"ds_rag": "0.1.0", "seed": len(text)}))


def state(run: Path) -> set[str | None]:
    """Whose each file is: None where it is not there."""
    whose = {len("new"): "new", len("before"): "before"}

    def of(name: str) -> str | None:
        if not (run / name).is_file():
            return None
        text = (run / name).read_text()
        return text if not name.endswith(".json") else json.loads(text).get("of") or whose[json.loads(text)["seed"]]

    return {of(name) for name in FILES}


def killed(work: Callable[[], object], fault: str) -> bool:
    """Does it in a child with this fault; False where the child came to the end."""
    child = os.fork()
    if not child:
        try:
            fault_injection._passed.clear()
            os.environ["DS_RAG_FAULT"] = fault
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


BEFORE = ["begin:0:kill:1", "export_model:0:kill:1", "export_model:0:kill:2", "begin:0:kill:2"]
BEFORE += [f"{point}:0:kill:{n}" for point in ("before_manifest", "before_rename") for n in (1, 2)]
AFTER = [f"exchange:0:kill:{n}" for n in range(1, 14)]


@pytest.mark.parametrize("fault", BEFORE + AFTER)
@pytest.mark.parametrize("first", [True, False], ids=["the first", "over another"])
def test_killed_at_any_point_it_opens_as_before_or_as_after(tmp_path: Path, fault: str, first: bool) -> None:
    run = tmp_path
    if not first:
        leave(run, "before")
    assert killed(lambda: leave(run, "new"), fault)
    wanted = "new" if fault in AFTER else None if first else "before"
    findings = [f for f in findings_of(run) if f.kind != "unfinished"] if wanted or fault not in BEFORE[:1] else []
    assert not any(f.wrong for f in findings), findings
    export.ready(run)
    assert state(run) == {wanted} and not (run / export.PENDING).exists()
    leave(run, "new")
    assert state(run) == {"new"} and not atomic_folders.partials(run) and not export.damages_of_export(run)
    assert sorted(f.name for f in run.iterdir()) == sorted(export.NAMES)


def test_the_points_are_all_there_are(tmp_path: Path) -> None:
    leave(tmp_path, "before")
    assert not killed(lambda: leave(tmp_path, "new"), f"exchange:0:kill:{len(AFTER) + 1}")


@pytest.mark.parametrize("second", range(1, 8))
def test_killed_again_while_it_is_made_good(tmp_path: Path, second: int) -> None:
    leave(tmp_path, "before")
    assert killed(lambda: leave(tmp_path, "new"), "exchange:0:kill:6")
    killed(lambda: export.settle(tmp_path), f"exchange:0:kill:{second}")
    export.ready(tmp_path)
    assert state(tmp_path) == {"new"} and sorted(f.name for f in tmp_path.iterdir()) == sorted(export.NAMES)


def test_an_error_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path, "before")
    monkeypatch.setenv("DS_RAG_FAULT", "before_rename:0:full:2")
    monkeypatch.setattr(fault_injection, "_passed", {})
    with pytest.raises(OSError, match="No space"):
        leave(tmp_path, "new")
    assert state(tmp_path) == {"before"} and not atomic_folders.partials(tmp_path)


def test_a_model_that_is_no_more_goes(tmp_path: Path) -> None:
    leave(tmp_path, "before")
    leave(tmp_path, "new", ("retriever",))
    assert not (tmp_path / "generator").exists() and not export.damages_of_export(tmp_path)
    assert not list(tmp_path.glob("replaced*"))


@pytest.mark.parametrize("linked", [True, False])
def test_an_index_that_does_not_come_along_stays(tmp_path: Path, linked: bool) -> None:
    """Of a run whose index is a link to another place: it is written there afterwards."""
    run, place = tmp_path / "run", tmp_path / "disk/index"
    leave(run, "before")
    if linked:
        place.parent.mkdir()
        (run / "index").rename(place)
        (run / "index").symlink_to(place)
    with export.staged(run) as folder:
        (folder / "retriever").mkdir()
        (folder / "retriever/weights.bin").write_text("new")
    assert (run / "index/text").read_text() == "before" and (run / "index").is_symlink() == linked
    assert not list(run.glob("replaced*")) and not (run / "generator").exists()


def test_files_of_the_user_s_own_are_kept(tmp_path: Path) -> None:
    leave(tmp_path, "before")
    (tmp_path / "retriever/onnx").mkdir()
    (tmp_path / "retriever/onnx/model.onnx").write_text("mine")
    (tmp_path / "generator/README.md").write_text("my card")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/big").write_text("")
    (tmp_path / "retriever/link").symlink_to(tmp_path / "elsewhere")
    leave(tmp_path, "new")
    kept = tmp_path / "replaced-1"
    files = {f.relative_to(kept).as_posix() for f in kept.rglob("*") if not f.is_dir() or f.is_symlink()}
    assert files == {"retriever/onnx/model.onnx", "generator/README.md", "retriever/link"}
    assert (tmp_path / "elsewhere/big").is_file() and state(tmp_path) == {"new"}
    (tmp_path / "retriever/notes").write_text("mine")
    leave(tmp_path, "newer")
    assert (tmp_path / "replaced-2/retriever/notes").is_file() and kept.is_dir()


def test_over_a_run_of_the_version_before(tmp_path: Path) -> None:
    """It has no manifest: what has today's names is its own, anything else may be the user's."""
    for name in MODELS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.bin").write_text("before")
    (tmp_path / "retriever/model.bin").write_text("")
    (tmp_path / "config.json").write_text('{"seed": 6}')
    assert export.ready(tmp_path) == {}
    assert not any(f.wrong for f in findings_of(tmp_path) if f.kind == "file")
    leave(tmp_path, "new")
    assert state(tmp_path) == {"new"} and (tmp_path / "replaced-1/retriever/model.bin").is_file()
    assert not (tmp_path / "replaced-1/generator").exists()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(bytes([data[0] ^ 1]) + data[1:])


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", ["retriever/weights.bin", "generator/weights.bin", "results.json", "config.json"])
def test_damage_is_named_and_refused(tmp_path: Path, name: str, harm: Callable[[Path], None]) -> None:
    leave(tmp_path, "new")
    harm(tmp_path / name)
    with pytest.raises(UserError, match="damaged") as caught:
        export.ready(tmp_path)
    assert name in str(caught.value) and "--resume auto" in str(caught.value)
    assert any(name in line for f in findings_of(tmp_path) for line in f.wrong)
    if harm is flip:
        assert export.ready(tmp_path, hashes=False), "sizes alone do not tell"
    else:
        with pytest.raises(UserError, match="damaged"):
            export.ready(tmp_path, hashes=False)


def test_models_of_two_exports_are_no_pair(tmp_path: Path) -> None:
    leave(tmp_path / "one", "before")
    leave(tmp_path / "two", "new")
    (tmp_path / "one/generator").rename(tmp_path / "aside")
    (tmp_path / "two/generator").rename(tmp_path / "one/generator")
    with pytest.raises(UserError, match=r"generator/weights\.bin"):
        export.ready(tmp_path / "one")
    assert any("generator/weights.bin" in line for f in findings_of(tmp_path / "one") for line in f.wrong)


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
def test_a_manifest_that_is_damaged_or_gone(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    leave(tmp_path, "new")
    harm(tmp_path / "manifest.json")
    with pytest.raises(UserError, match=r"manifest\.json"):
        export.ready(tmp_path)
    assert any("manifest.json" in line for f in findings_of(tmp_path) for line in f.wrong)


def test_what_may_change_without_harm(tmp_path: Path) -> None:
    """The index is made again, the report written, the log grows, the user writes a card."""
    leave(tmp_path, "new")
    part = atomic_folders.begin(tmp_path / "index")
    (part / "text").write_text("another")
    atomic_folders.seal(part, tmp_path / "index", {"kind": "index"})
    for name in ("report.html", "run.log", "retriever/README.md"):
        (tmp_path / name).write_text("changed since")
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    assert export.ready(tmp_path)["kind"] == "run" and not any(
        f.wrong for f in findings_of(tmp_path) if f.kind != "index"
    )


def test_an_export_under_way_is_another_job_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path, "before")
    assert killed(lambda: leave(tmp_path, "new"), "exchange:0:kill:6")

    def held(file: Path, what: Path) -> bool:
        raise folder_lock.taken(what, file)

    monkeypatch.setattr(folder_lock, "take", held)
    with pytest.raises(UserError, match="another job works in this folder"):
        export.ready(tmp_path)
    assert any("another job" in line for f in findings_of(tmp_path) for line in f.wrong)
    monkeypatch.undo()
    export.ready(tmp_path)
    assert not (tmp_path / "lock").exists() and state(tmp_path) == {"new"}


def test_who_may_not_write_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path, "before")
    assert killed(lambda: leave(tmp_path, "new"), "exchange:0:kill:6")

    def refused(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(export.os, "rename", refused)
    with pytest.raises(UserError, match="Read-only"):
        export.ready(tmp_path)


def test_a_damaged_manifest_on_its_way_moves_nothing(tmp_path: Path) -> None:
    leave(tmp_path, "before")
    assert killed(lambda: leave(tmp_path, "new"), "exchange:0:kill:1")
    flip(tmp_path / export.PENDING / "manifest.json")
    with pytest.raises(UserError, match=r"export\.pending/manifest\.json"):
        export.ready(tmp_path)
    assert state(tmp_path) == {"before"}


def test_the_lock_stays_with_who_held_it(tmp_path: Path) -> None:
    folder_lock.hold(tmp_path)
    with folder_lock.holding(tmp_path):
        pass
    assert (tmp_path / "lock").exists()
    folder_lock.release(tmp_path)


def test_a_configuration_says_what_wrote_it(tmp_path: Path) -> None:
    from ds_rag.config import RunConfig

    (tmp_path / "config.json").write_text(config_and_results.configuration_text(RunConfig()))
    assert config_and_results.configuration(tmp_path) == RunConfig().flat() and config_and_results.has_version(tmp_path)
