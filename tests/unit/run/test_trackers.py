"""Trackers: which are asked for, what they are sent, what their failures do, and that a resumed run goes on in them.

A stand-in library shows what each of them is sent; where the real one is installed, its offline mode is tried too.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ds_rag.config import RunConfig
from ds_rag.run import trackers
from ds_rag.run.metrics_file import Metrics, open_metrics
from ds_rag.run.trackers import TRACKERS, TrackedRun, Tracking, check_installed, chosen_trackers, start_tracking
from ds_rag.runtime.errors import RunError, UserError
from ds_rag.runtime.own_files import RUN, strangers_by_name

Calls = list[tuple[Any, ...]]


class Stub:
    """A tracker that notes what it is told, or fails at it."""

    def __init__(self, fails: bool = False):
        self.fails, self.calls = fails, []  # type: bool, Calls

    def log(self, step: int, values: dict[str, float]) -> None:
        self.calls.append((step, values))
        if self.fails:
            raise ConnectionError("no route")

    def finish(self) -> None:
        self.calls.append(("finish",))


def test_one_or_several_names_each_once() -> None:
    assert chosen_trackers("none") == []
    assert chosen_trackers("wandb") == ["wandb"]
    assert chosen_trackers("mlflow, tensorboard,mlflow") == ["mlflow", "tensorboard"]
    with pytest.raises(UserError, match="unknown tracker in --report_to 'tensorbord'") as caught:
        chosen_trackers("wandb,tensorbord")
    assert "did you mean 'tensorboard'" in str(caught.value) and "trackio" in str(caught.value)
    for wrong in ("", "none,wandb", "wandb,"):
        with pytest.raises(UserError, match="unknown tracker"):
            chosen_trackers(wrong)


@pytest.mark.parametrize("name", TRACKERS)
def test_each_is_an_extra_that_is_named_where_it_is_absent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, TRACKERS[name], None)
    with pytest.raises(UserError, match=f"--report_to {name}: not installed") as caught:
        check_installed(name)
    assert f"pip install 'ds_rag[{name}]'" in str(caught.value)
    extras = (Path(__file__).resolve().parents[3] / "pyproject.toml").read_text().split("optional-dependencies")[1]
    assert f"\n{name} = [" in extras


@pytest.mark.parametrize("name", TRACKERS)
def test_a_library_that_does_not_import_is_absent_too(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(UserError, match=f"--report_to {name}: not installed"):
        start_tracking(name, TrackedRun(tmp_path, {}), print)


def test_trackers_are_sent_the_numbers_of_a_line_and_are_finished(tmp_path: Path) -> None:
    stub = Stub()
    metrics = Metrics(tmp_path, tracking=Tracking({"stub": stub}))
    metrics.write("train", 3, {"loss": 0.5, "skipped": 1, "grad_norm": math.inf, "note": "text", "none": None})
    metrics.write("warning", 3, {"text": "only words"})
    metrics.close()
    assert stub.calls == [(3, {"train/loss": 0.5, "train/skipped": 1, "train/grad_norm": math.inf}), ("finish",)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_tracker_that_fails_is_said_once_and_ends_neither_the_run_nor_the_others(tmp_path: Path) -> None:
    said: list[str] = []
    bad, good = Stub(fails=True), Stub()
    metrics = Metrics(tmp_path, tracking=Tracking({"bad": bad, "good": good}, said.append))
    for step in (1, 2, 3):
        metrics.write("train", step, {"loss": 1.0})
    metrics.close()
    assert len(bad.calls) == 1 and len(good.calls) == 4
    assert said == [trackers.failed("bad", ConnectionError("no route"))] and "continues without" in said[0]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(run: TrackedRun) -> None:
        raise ConnectionError("no route")

    module = ModuleType("ds_rag.run.trackers.wandb")
    module.start = start  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_one_that_does_not_start_ends_a_new_run_but_not_a_resumed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    with pytest.raises(RunError, match="--report_to wandb: does not start"):
        start_tracking("wandb", TrackedRun(tmp_path, {}), print)
    said: list[str] = []
    assert start_tracking("wandb", TrackedRun(tmp_path, {}, resumed_at=4), said.append).trackers == {}
    assert len(said) == 1 and "no route" in said[0]


def test_only_rank_0_tracks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch)
    config = RunConfig()
    config.run.report_to = "wandb"
    monkeypatch.setenv("RANK", "1")
    open_metrics(config, tmp_path, None, None, print).write("train", 1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RunError):
        open_metrics(config, tmp_path, None, None, print)


def test_a_damaged_file_of_ids_counts_as_none(tmp_path: Path) -> None:
    run = TrackedRun(tmp_path, {})
    run.keep_id("wandb", "abc")
    run.keep_id("mlflow", "def")
    assert (run.known_id("wandb"), run.known_id("mlflow"), run.known_id("trackio")) == ("abc", "def", None)
    assert not strangers_by_name(tmp_path, RUN), "a run's own file, which goes with its folder"
    for text in ("[1]", '{"wandb"', '{"wandb": 3}'):
        (tmp_path / trackers.IDS).write_text(text)
        assert run.known_id("wandb") is None


class Library(ModuleType):
    """Stands for a tracker's library: notes every call by its name, with its arguments."""

    def __init__(self, name: str):
        super().__init__(name)
        self.calls: Calls = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            return SimpleNamespace(id="id-1", info=SimpleNamespace(run_id="id-1"), **self.of_run())

        return call

    def of_run(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("log", "finish", "define_metric")}


def sent(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, resumed_at: int | None = None) -> dict[str, Any]:
    """What the library `name` is called with in a run of one line: function -> (args, kwargs) of its last call."""
    library = Library(name)
    monkeypatch.setitem(sys.modules, name, library)
    said: list[str] = []
    tracking = start_tracking(name, TrackedRun(folder, {"seed": 3, "lora": "none"}, resumed_at), said.append)
    tracking.log("eval", 5, {"recall@1": 0.5})
    tracking.finish()
    assert not said
    return {function: (args, kwargs) for function, args, kwargs in library.calls}


def test_what_wandb_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    calls = sent("wandb", tmp_path, monkeypatch)
    _, first = calls["init"]
    assert first["config"] == {"seed": 3, "lora": "none"} and first["id"] is None
    assert (first["project"], first["name"]) == ("ds_rag", tmp_path.name)
    assert calls["define_metric"] == (("*",), {"step_metric": "step"})
    assert calls["log"] == (({"step": 5, "eval/recall@1": 0.5},), {}) and "finish" in calls
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    _, again = sent("wandb", tmp_path, monkeypatch, resumed_at=4)["init"]
    assert (again["id"], again["resume"], again["project"]) == ("id-1", "allow", "mine")


def test_what_mlflow_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    calls = sent("mlflow", tmp_path, monkeypatch)
    assert calls["set_experiment"] == (("ds_rag",), {}) and calls["start_run"] == ((), {"run_name": tmp_path.name})
    assert calls["log_params"] == (({"seed": 3, "lora": "none"},), {})
    assert calls["log_metrics"] == (({"eval/recall_at_1": 0.5},), {"step": 5}) and "end_run" in calls
    again = sent("mlflow", tmp_path, monkeypatch, resumed_at=4)
    assert again["start_run"] == ((), {"run_id": "id-1"}) and "log_params" not in again


def test_what_trackio_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACKIO_PROJECT", raising=False)
    calls = sent("trackio", tmp_path, monkeypatch)
    _, first = calls["init"]
    assert first["project"] == "ds_rag" and first["name"].startswith(f"{tmp_path.name}-")
    assert first["config"] == {"seed": 3, "lora": "none"}
    assert calls["log"] == (({"eval/recall@1": 0.5},), {"step": 5}) and "finish" in calls
    _, again = sent("trackio", tmp_path, monkeypatch, resumed_at=4)["init"]
    assert (again["name"], again["resume"]) == (first["name"], "allow")


def needs(library: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(library) is None, reason=f"{library} is not installed (an extra)")


def track(name: str, folder: Path) -> None:
    """A run of three lines, resumed once after the first, in the tracker's own offline mode."""
    for resumed_at, step in ((None, 1), (1, 2), (1, 3)):
        tracking = start_tracking(name, TrackedRun(folder, {"seed": 3}, resumed_at), pytest.fail)
        tracking.log("eval", step, {"recall@1": step / 4})
        tracking.finish()


@needs("tensorboard")
def test_tensorboard_holds_a_resumed_run_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("eval/recall@1")] == [(1, 0.25), (3, 0.75)]
    assert not (tmp_path / trackers.IDS).exists()


@needs("wandb")
def test_wandb_offline_keeps_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    track("wandb", tmp_path)
    kept = json.loads((tmp_path / trackers.IDS).read_text())["wandb"]
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert files and all(file.stem == f"run-{kept}" for file in files)
    assert any(b"eval/recall@1" in file.read_bytes() for file in files)


@needs("mlflow")
def test_mlflow_in_a_local_database_holds_a_resumed_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    track("mlflow", tmp_path)
    (kept,) = json.loads((tmp_path / trackers.IDS).read_text()).values()
    history = mlflow.MlflowClient().get_metric_history(kept, "eval/recall_at_1")
    assert [(m.step, m.value) for m in history] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert mlflow.get_run(kept).data.params == {"seed": "3"}


@needs("trackio")
def test_trackio_on_this_machine_holds_a_resumed_run_once(tmp_path: Path) -> None:
    """In a process of its own: where its files lie trackio reads once, when it is imported."""
    code = (
        "import sys; from pathlib import Path; from ds_rag.run.trackers import TrackedRun, start_tracking\n"
        "for resumed_at, step in ((None, 1), (1, 2), (1, 3)):\n"
        "    tracking = start_tracking('trackio', TrackedRun(Path(sys.argv[1]), {'seed': 3}, resumed_at), sys.exit)\n"
        "    tracking.log('eval', step, {'recall@1': step / 4})\n"
        "    tracking.finish()\n"
    )
    root = Path(__file__).resolve().parents[3]
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "TRACKIO_PROJECT": "tried"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=env, cwd=root, timeout=60)
    (kept,) = json.loads((tmp_path / trackers.IDS).read_text()).values()
    with sqlite3.connect(tmp_path / "trackio/tried.db") as database:
        found = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [(name, step, json.loads(m)) for name, step, m in found] == [
        (kept, step, {"eval/recall@1": step / 4}) for step in (1, 2, 3)
    ]
