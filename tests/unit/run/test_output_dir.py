"""Which folder a training may replace, go on in, or must leave alone.

Variants, of the built-in run's own folder: ended, never begun, stopped at a step, killed after a figure, failed before
one, killed after a checkpoint, gone on after its end and stopped or killed then, held, with a file of the user's, of
another program whose files have the same names. With `--resume`: a run, an empty folder, a folder of something else.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from ds_rag.config.flags import parse
from ds_rag.run.output_dir import claim
from ds_rag.runtime import atomic_folders, folder_lock, stop_signals
from ds_rag.runtime.errors import UserError

OWN = Path("runs/quickstart")
FIGURE = '{"kind": "train", "step": %d}\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(ended: int | None = None, last: int | None = None, checkpoint: int | None = None, word: bool = False) -> None:
    """The built-in run's folder after its end at step `ended`, a figure of step `last`, a checkpoint, a stop."""
    OWN.mkdir(parents=True)
    (OWN / "config.json").write_text(json.dumps(parse([]).flat()))
    (OWN / "run.log").write_text("")
    (OWN / "metrics.jsonl").write_text("" if last is None else FIGURE % last)
    if ended is not None:
        (OWN / "results.json").write_text(json.dumps({"steps": ended}))
        for name in ("retriever", "generator"):
            (OWN / name).mkdir()
            (OWN / name / "model.safetensors").write_text("")
    if checkpoint is not None:
        (OWN / f"checkpoints/step-{checkpoint}").mkdir(parents=True)
        (OWN / f"checkpoints/step-{checkpoint}/state.json").write_text("{}")
    if word:
        stop_signals.leave_word(OWN, "SIGINT", last)


def names() -> set[str]:
    return {str(f.relative_to(OWN)) for f in OWN.rglob("*")}


REPLACED = {
    "ended": {"ended": 5, "last": 5, "checkpoint": 5},
    "ended early at its best": {"ended": 5, "last": 5, "checkpoint": 3},
    "never begun": {},
    "stopped before its first figure": {"word": True},
}
STAYS = {
    "stopped": {"last": 3, "checkpoint": 3, "word": True},
    "stopped before its first step": {"last": 0, "word": True},
    "killed after a figure": {"last": 3},
    "killed after a checkpoint": {"last": 3, "checkpoint": 2},
    "went on and was stopped": {"ended": 5, "last": 5, "checkpoint": 5, "word": True},
    "went on and was killed": {"ended": 5, "last": 7, "checkpoint": 5},
    "went on and saved": {"ended": 5, "last": 5, "checkpoint": 6},
}


@pytest.mark.parametrize("state", REPLACED.values(), ids=REPLACED)
def test_an_own_run_that_has_ended_or_never_begun_is_replaced(state: dict[str, int]) -> None:
    run(**state)  # type: ignore[arg-type]
    claim(parse([]))
    assert names() == {"config.json", "lock"}
    folder_lock.release(OWN)


def test_a_run_of_the_users_models_has_another_folder_and_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse(["--retriever", "encoder"])
    assert config.is_builtin and config.run.output_dir == "runs/train" and parse([]).run.output_dir == str(OWN)
    monkeypatch.setattr(sys.modules[__name__], "OWN", Path("runs/train"))
    run(ended=5, last=5)
    with pytest.raises(UserError, match="not empty"):
        claim(config)
    assert (OWN / "results.json").exists()


@pytest.mark.parametrize("state", STAYS.values(), ids=STAYS)
def test_one_that_has_not_ended_stays_and_both_ways_on_are_named(state: dict[str, int]) -> None:
    run(**state)  # type: ignore[arg-type]
    before = names()
    with pytest.raises(UserError, match="has not ended") as caught:
        claim(parse([]))
    assert "--resume auto" in str(caught.value) and "--output_dir" in (caught.value.fix or "")
    assert names() - {"lock"} == before
    claim(parse(["--resume", "auto"]))
    assert names() - {"lock"} == before - {"exit.json"}
    folder_lock.release(OWN)


@pytest.mark.parametrize("file", ["notes.txt", "retriever/notes.txt", "checkpoints/mine/x", "index/notes.txt", "a.tmp"])
def test_a_file_of_the_users_keeps_its_run(file: str) -> None:
    run(ended=5, last=5)
    (OWN / file).parent.mkdir(parents=True, exist_ok=True)
    (OWN / file).write_text("mine")
    with pytest.raises(UserError, match="not a run's") as caught:
        claim(parse([]))
    assert file in str(caught.value) and (OWN / file).read_text() == "mine"


def test_a_card_that_the_user_has_gone_on_writing_keeps_its_run() -> None:
    card = OWN / "retriever/README.md"
    for text, written in (("# Retriever", False), ("# Retriever\nOur results: ...", True)):
        shutil.rmtree(OWN, ignore_errors=True)
        run(ended=5, last=5)
        card.write_text("# Retriever")
        facts = {"kind": "run", "files": {"retriever/README.md": atomic_folders.measure(card)}}
        (OWN / "manifest.json").write_text(json.dumps(facts | {"seal": atomic_folders.seal_of(facts)}))
        card.write_text(text)
        if written:
            with pytest.raises(UserError, match="not a run's") as caught:
                claim(parse([]))
            assert "retriever/README.md" in str(caught.value) and card.read_text() == text
        else:
            claim(parse([]))
            assert not card.exists()
        folder_lock.release(OWN)


def test_of_a_link_in_it_only_the_link_goes(here: Path) -> None:
    run(ended=5, last=5)
    (here / "disk").mkdir()
    (here / "disk/step-1").write_text("x")
    (OWN / "checkpoints").symlink_to(here / "disk")
    with pytest.raises(UserError, match="not a run's"):
        claim(parse([]))
    assert (here / "disk/step-1").exists() and (OWN / "checkpoints").is_symlink()


@pytest.mark.parametrize("resume", ["auto", "another/run"])
@pytest.mark.parametrize("file", ["STOP", "exit.json", "config.json", "lock"])
def test_a_folder_of_something_else_is_not_gone_on_in(resume: str, file: str) -> None:
    folder = Path("thesis")
    folder.mkdir()
    (folder / "chapter.txt").write_text("ten years")
    (folder / file).write_text("{}" if file == "config.json" else "mine")
    before = {f.name: f.read_text() for f in folder.iterdir()}
    with pytest.raises(UserError):
        claim(parse(["--train_data", "x.csv", "--output_dir", "thesis", "--resume", resume]))
    assert {f.name: f.read_text() for f in folder.iterdir()} == before


@pytest.mark.parametrize("flags", [[], ["--output_dir", str(OWN)], ["--resume", "auto"]], ids=str)
@pytest.mark.parametrize("names", [("config.json",), ("config.json", "run.log"), ("config.json", "run.log", "lock")])
def test_another_programs_files_that_are_only_named_like_ours_stay(flags: list[str], names: tuple[str, ...]) -> None:
    OWN.mkdir(parents=True)
    for name in names:
        (OWN / name).write_text("" if name == "lock" else '{"lr": 1}')
    with pytest.raises(UserError) as caught:
        claim(parse(flags))
    assert "auto" not in (caught.value.fix or "")  # it would train among them
    assert (OWN / "config.json").read_text() == '{"lr": 1}' and all((OWN / n).exists() for n in names if n != "lock")
    folder_lock.release(OWN)


def test_what_cannot_be_written_at_the_end_shows_at_the_start() -> None:
    from bound import bound

    run(last=3, checkpoint=3)
    (OWN / "index").mkdir()
    (OWN / "index").chmod(0o555)
    with bound(), pytest.raises(UserError, match="index cannot be read or written"):
        claim(parse(["--resume", "auto"]))
    folder_lock.release(OWN)
