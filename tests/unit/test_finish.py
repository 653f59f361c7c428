"""Which weights a run ends with under --load_best_model_at_end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ds_rag import checkpoint, commit, train
from ds_rag.checkpoint import TrainState
from ds_rag.config import build
from ds_rag.errors import UserError
from ds_rag.evaluate import Evaluation
from ds_rag.index_stage import Landed


class Ending:
    """A run after its last step, 6, whose best was 0.5 at step 4; `done` is what happened to it."""

    def __init__(self, folder: Path, last: float, **flags: Any):
        self.done: list[str] = []
        self.state = TrainState(step=6, best=0.5, best_step=4, refreshed=4)
        self.config = build({"load_best_model_at_end": True, "save_steps": 0} | flags)
        self.parts = SimpleNamespace(
            candidates=None, data=SimpleNamespace(evaluation=["a row"]), engines="engines", total_steps=6
        )
        self.keeper = SimpleNamespace(folder=folder, save=lambda state: self.done.append(f"save {state.step}"))
        self.index = SimpleNamespace(refresh=self.refresh)
        self.last, nothing = last, lambda *_: None
        self.guards = SimpleNamespace(memory={}, after_evaluation=nothing)
        self.halt = SimpleNamespace(begin=nothing)
        self.console, self.metrics = SimpleNamespace(say=nothing), SimpleNamespace(write=nothing)

    def refresh(self, step: int, progress: bool) -> Landed:
        self.done.append(f"evaluate {step}")
        return Landed(Evaluation({"recall@1": self.last}), step, step, True, None)  # type: ignore[arg-type]


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "damages_on_ranks", lambda folder: [])


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


def test_without_the_flag_the_last_stays(tmp_path, sound, monkeypatch):
    run = Ending(tmp_path, last=0.4, load_best_model_at_end=False)
    assert finish(run, monkeypatch) == ["evaluate 6"]


def test_a_best_checkpoint_that_is_gone_is_no_reason_to_export_another(tmp_path, monkeypatch):
    run = Ending(tmp_path, last=0.4)
    with pytest.raises(UserError, match="step-4: damaged"):
        finish(run, monkeypatch)
    assert run.done == ["evaluate 6", "save 6"]
