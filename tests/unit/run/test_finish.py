"""Which weights a run ends with under --load_best_model_at_end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ds_rag import train
from ds_rag.config import build
from ds_rag.evaluation.evaluator import Evaluation
from ds_rag.run import checkpoint, checkpoint_files, summary
from ds_rag.run.checkpoint import TrainState
from ds_rag.run.index_refresh import Landed
from ds_rag.run.publish_index import publish
from ds_rag.runtime import atomic_folders, stop_signals
from ds_rag.runtime.errors import UserError


class Ending:
    """A run after its last step, 6, whose best was 0.5 at step 4; `done` is what happened to it."""

    def __init__(self, folder: Path, last: float, **flags: Any):
        self.done: list[str] = []
        self.state = TrainState(step=6, best=0.5, best_step=4, refreshed=4)
        self.config = build({"load_best_model_at_end": True, "save_steps": 0} | flags)
        self.parts = SimpleNamespace(
            joint=SimpleNamespace(scoring=None),
            candidates=None,
            data=SimpleNamespace(evaluation=["a row"]),
            engines="engines",
            total_steps=6,
        )
        self.saver = SimpleNamespace(folder=folder, save=lambda state: self.done.append(f"save {state.step}"))
        self.index = SimpleNamespace(refresh=self.refresh)
        self.last, nothing = last, lambda *_: None
        self.watchers = SimpleNamespace(memory={}, after_evaluation=nothing)
        self.console, self.metrics = SimpleNamespace(say=nothing), SimpleNamespace(write=nothing)

    def refresh(self, step: int, progress: bool) -> Landed:
        self.done.append(f"evaluate {step}")
        return Landed(Evaluation({"recall@1": self.last}), step, step, True, None)  # type: ignore[arg-type]


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_folders, "damages_on_ranks", lambda folder: [])


def finish(run: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def load(folder: Path, engines: Any, weights_only: bool) -> None:
        assert weights_only
        run.done.append(f"load {folder.name}")

    monkeypatch.setattr(checkpoint, "load_engines", load)
    train.finish(run, None)
    return run.done


def test_a_better_step_before_is_loaded_once_the_last_is_saved(tmp_path, sound, monkeypatch):
    run = Ending(tmp_path, last=0.4)
    assert finish(run, monkeypatch) == ["evaluate 6", "save 6", "load step-4", "evaluate 4"]


def test_a_last_step_that_is_the_best_is_what_the_run_ends_with(tmp_path, sound, monkeypatch):
    run = Ending(tmp_path, last=0.6)
    assert finish(run, monkeypatch) == ["evaluate 6"] and run.state.best_step == 6


def test_the_last_evaluation_is_no_index_stage_of_a_run_that_is_made_longer(tmp_path, sound, monkeypatch):
    """That run refreshes the index of step 6 again, for its rows to come: step 4's is the last of the loop."""
    run, offered = Ending(tmp_path, last=0.6), []
    run.parts.candidates = SimpleNamespace(refresh=lambda *inputs: offered.append(inputs))
    finish(run, monkeypatch)
    assert run.state.refreshed == 4 and not offered


def test_without_the_flag_the_last_stays(tmp_path, sound, monkeypatch):
    run = Ending(tmp_path, last=0.4, load_best_model_at_end=False)
    assert finish(run, monkeypatch) == ["evaluate 6"]


def test_a_best_checkpoint_that_is_gone_is_no_reason_to_export_another(tmp_path, monkeypatch):
    run = Ending(tmp_path, last=0.4)
    with pytest.raises(UserError, match="step-4: damaged"):
        finish(run, monkeypatch)
    assert run.done == ["evaluate 6", "save 6"]


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a rank that waits in vain would say it waited in, one after the other."""
    named: list[str] = []
    monkeypatch.setattr(stop_signals, "_name", named.append)
    return named


def test_each_phase_of_the_end_names_itself(tmp_path, monkeypatch, phases):
    """Checking and loading the best step are not its saving, nor is its evaluation the last one's."""
    run, at = Ending(tmp_path, last=0.4), {}

    def collective(what: str, result: Any = None) -> Any:
        at[what] = phases[-1]
        return result

    monkeypatch.setattr(atomic_folders, "damages", lambda folder: collective("check", []))
    monkeypatch.setattr(checkpoint_files, "load_engine", lambda *a: collective("load"))
    (tmp_path / "checkpoints" / "step-4" / "retriever").mkdir(parents=True)
    run.parts.engines = SimpleNamespace(learning={"retriever": None})
    evaluate = run.index.refresh
    run.index.refresh = lambda step, progress: collective(f"evaluate {step}", evaluate(step, progress))
    train.finish(run, None)
    assert at == {
        "evaluate 6": "the last evaluation",
        "check": "checking the files of step-4",
        "load": "loading the checkpoint step-4",
        "evaluate 4": "the evaluation of the best step, 4",
    }


def lost(*args: Any, **more: Any) -> Any:
    raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize(
    ("phase", "begin"),
    [
        ("exporting the models", lambda run: summary.export_models(run, ENGINES, {})),
        ("saving the checkpoint of step 7", lambda run: checkpoint.save(run, ENGINES, TrainState(step=7), 2)),
        ("loading the checkpoint step-7", lambda run: checkpoint.load_engines(run / "step-7", ENGINES)),
        ("checking the files of step-7", lambda run: atomic_folders.damages_on_ranks(run / "step-7")),
        ("writing the index", lambda run: publish(run / "index", None, [], [], None)),
    ],
)
def test_what_ranks_do_together_names_itself_before_they_wait(tmp_path, monkeypatch, phases, phase, begin):
    (tmp_path / "step-7" / "retriever").mkdir(parents=True)
    for place in ((atomic_folders, "begin"), (atomic_folders, "damages"), (checkpoint_files, "load_engine")):
        monkeypatch.setattr(*place, lost)
    with pytest.raises(RuntimeError):
        begin(tmp_path)
    assert phases[-1] == phase


ENGINES: Any = SimpleNamespace(modules={"retriever": None}, learning={"retriever": None}, full_state=lost)
