"""A run finds its rows from another working directory, moved with them or copied alone, or says where it looked."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import small
from small import finished_run

from ds_rag.commands import cli
from ds_rag.config import DataConfig, RunConfig, build
from ds_rag.run.config_and_results import configuration, configuration_text
from ds_rag.run.moved_paths import PATHS, check_found, located
from ds_rag.runtime.errors import UserError

TYPED = {"train_data": "data/rows.jsonl", "corpus": "data/corpus.jsonl", "output_dir": "runs/one"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose run was trained in it, with paths relative to it; the working directory is another one."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project / "data", project / "runs/one", elsewhere):
        folder.mkdir(parents=True)
    for name in ("rows", "corpus"):
        (project / f"data/{name}.jsonl").write_text("{}")
    monkeypatch.chdir(project)
    (project / "runs/one/config.json").write_text(configuration_text(build(TYPED)))
    monkeypatch.chdir(elsewhere)
    return project


def found(run: Path) -> dict[str, str]:
    return located(run, configuration(run))


def test_config_json_keeps_what_was_typed_and_where_it_led(project: Path) -> None:
    values = json.loads((project / "runs/one/config.json").read_text())
    assert {name: values[name] for name in TYPED} == TYPED
    assert values[PATHS] == {name: str(project / path) for name, path in TYPED.items()}
    assert PATHS not in configuration(project / "runs/one")
    assert "eval_data" not in json.loads(configuration_text(RunConfig()))[PATHS], "none was given"


def test_from_another_working_directory(project: Path) -> None:
    rows, corpus = (str(project / f"data/{name}.jsonl") for name in ("rows", "corpus"))
    assert found(project / "runs/one") == {"train_data": rows, "corpus": corpus}
    shutil.copytree(project / "runs/one", "copied")
    assert found(Path("copied")) == {"train_data": rows, "corpus": corpus}, (
        "the run alone: its rows are where they were"
    )


def test_moved_together(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project.rename(tmp_path / "moved")
    wanted = {name: str(tmp_path / "moved" / TYPED[name]) for name in ("train_data", "corpus")}
    assert found(tmp_path / "moved/runs/one") == wanted
    monkeypatch.chdir(tmp_path / "moved")
    assert found(Path("runs/one")) == {}, "here the paths lead there as they were typed"


def test_beside_the_run(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "runs/one", tmp_path / "flat/one")
    shutil.copy(project / "data/rows.jsonl", tmp_path / "flat")
    shutil.rmtree(project)
    assert found(tmp_path / "flat/one") == {"train_data": str(tmp_path / "flat/rows.jsonl")}


def test_a_file_of_the_same_name_here_is_another(project: Path) -> None:
    Path("data").mkdir()
    Path(TYPED["corpus"]).write_text("another project's")
    assert found(project / "runs/one")["corpus"] == str(project / TYPED["corpus"])
    shutil.rmtree(project / "data")
    assert "corpus" not in found(project / "runs/one"), "what was typed, as before there were absolute paths"


def test_what_is_nowhere_is_said_with_all_its_places(project: Path) -> None:
    run, data = project / "runs/one", DataConfig(train_data=TYPED["train_data"], corpus=TYPED["corpus"])
    (project / "data/rows.jsonl").unlink()
    with pytest.raises(UserError) as caught:
        check_found(run, data)
    said = str(caught.value)
    for part in (TYPED["train_data"], str(project / TYPED["train_data"]), "--train_data FILE"):
        assert part in said
    for given, eval_data in ((["train_data"], None), ([], "dev.jsonl")):  # not the run's own, or not read
        other = DataConfig(train_data=TYPED["train_data"], corpus=str(project / TYPED["corpus"]), eval_data=eval_data)
        check_found(run, other, given)


def test_a_run_of_before_is_read_as_ever(tmp_path: Path) -> None:
    values = RunConfig().flat() | TYPED
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert found(tmp_path) == {}
    check_found(tmp_path, DataConfig(train_data=TYPED["train_data"]))
    (tmp_path / "config.json").write_text(json.dumps(values | {PATHS: {"corpus": 3}}))
    with pytest.raises(UserError, match="wrong type"):
        found(tmp_path)


def test_a_copied_run_is_evaluated_indexed_and_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained with relative paths, then copied, called from a third place by a relative path."""
    (tmp_path / "project").mkdir()
    (tmp_path / "far").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(small, "SAID", small.SAID | {"eval_data": "rows.jsonl", "corpus": "corpus.jsonl"})
    for name in ("rows", "corpus"):
        Path(f"{name}.jsonl").touch()  # finished_run writes them, and then the configuration
    finished_run(tmp_path / "project")
    own = ["evaluate", "--run", "run", "--json", str(tmp_path / "own.json")]
    assert cli.main(own) == 0
    shutil.copytree("run", tmp_path / "far/copy")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "--run", "far/copy", "--json", "far.json"]) == 0
    results = [json.loads(Path(name).read_text()) for name in ("own.json", "far.json")]
    assert results[0]["retrieval"] == results[1]["retrieval"] and results[1]["setting"]["passages"] == 3
    assert cli.main(["ask", "far/copy", "where 1 ?"]) == 0 and cli.main(["index", "--run", "far/copy"]) == 0
    os.rename("project/rows.jsonl", "project/gone.jsonl")
    with pytest.raises(UserError, match=r"its training read as --eval_data rows\.jsonl"):
        cli.run("evaluate", ["--run", "far/copy"])
