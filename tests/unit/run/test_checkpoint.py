"""Saving, pruning, finding and loading, with engines that write a text. (With DeepSpeed's: tests/distributed.)"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ds_rag.run import checkpoint, checkpoint_files
from ds_rag.run.checkpoint import TrainState, checkpoints, find, load, save, tidy
from ds_rag.run.summary import export_models
from ds_rag.runtime import atomic_folders
from ds_rag.runtime.errors import UserError


class TextEngine:
    """An engine with one text for weights and one for its optimizer."""

    def __init__(self, weights: str):
        self.weights, self.moments = weights, weights


def save_text(engine: TextEngine, folder: Path) -> str | None:
    folder.mkdir()
    (folder / "weights").write_text(engine.weights)
    return None


def load_text(engine: TextEngine, folder: Path, weights_only: bool = False) -> None:
    engine.weights = (folder / "weights").read_text()
    if not weights_only:
        engine.moments = engine.weights


@pytest.fixture(autouse=True)
def text_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_files, "save_engine", save_text)
    monkeypatch.setattr(checkpoint_files, "load_engine", load_text)


def pair(weights: str = "w", names: Sequence[str] = ("retriever", "generator")) -> Any:
    return SimpleNamespace(learning={name: TextEngine(f"{name} {weights}") for name in names}, modules={})


def steps(run: Path) -> list[int]:
    return [int(f.name.removeprefix("step-")) for f in checkpoints(run)]


def save_at(run: Path, *numbers: int, keep: int = 9, best: int | None = None) -> None:
    for step in numbers:
        save(run, pair(str(step)), TrainState(step=step, best_step=best), keep)


def test_round_trip(tmp_path):
    state = TrainState(step=7, best=0.5, best_step=5, evaluations_without_gain=2, skipped=1, before={"mrr@10": 0.1})
    torch.manual_seed(3)
    save(tmp_path, pair("saved"), state, keep=2)
    drawn = torch.rand(4)
    engines = pair("other")
    assert load(tmp_path / "checkpoints" / "step-7", engines) == state
    assert torch.equal(torch.rand(4), drawn), "the random state is part of it"
    assert [e.weights for e in engines.learning.values()] == ["retriever saved", "generator saved"]
    assert [e.moments for e in engines.learning.values()] == ["retriever saved", "generator saved"]


def test_weights_alone_leave_the_optimizer(tmp_path):
    save_at(tmp_path, 3)
    engines = pair("other")
    checkpoint.load_engines(tmp_path / "checkpoints" / "step-3", engines, weights_only=True)
    for engine in engines.learning.values():
        assert engine.weights.endswith("3") and engine.moments.endswith("other")


def test_order_is_that_of_numbers(tmp_path):
    save_at(tmp_path, 9, 10, 100)
    assert steps(tmp_path) == [9, 10, 100]


def test_only_the_last_are_kept_and_the_best_besides(tmp_path):
    save_at(tmp_path, 1, 2, 3, 4, 5, keep=2, best=2)
    assert steps(tmp_path) == [2, 4, 5]
    save_at(tmp_path, 6, keep=2, best=5)
    assert steps(tmp_path) == [5, 6]
    save_at(tmp_path, 7, keep=0, best=None)
    assert steps(tmp_path) == [6, 7], "two always stay: one may turn out to be damaged"
    assert (tmp_path / "checkpoints" / "LATEST").read_text() == "step-7"


def test_saving_a_step_again_replaces_it(tmp_path):
    save_at(tmp_path, 3)
    save(tmp_path, pair("again"), TrainState(step=3), keep=2)
    assert steps(tmp_path) == [3]
    assert (tmp_path / "checkpoints/step-3/retriever/weights").read_text() == "retriever again"


def test_what_a_crash_left_is_no_checkpoint_and_is_cleared(tmp_path):
    save_at(tmp_path, 2)
    torn = tmp_path / "checkpoints" / "step-4.tmp-1234abcd"
    (torn / "retriever").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-old").mkdir()
    said: list[str] = []
    assert steps(tmp_path) == [2]
    assert find(tmp_path, "auto", said.append) == tmp_path / "checkpoints" / "step-2"
    assert "step-4.tmp-1234abcd was never finished" in said[0]
    save_at(tmp_path, 4)
    assert steps(tmp_path) == [2, 4] and not torn.exists()


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
@pytest.mark.parametrize("name", ["retriever/weights", "state.json", "random-rank0.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_loudly_and_refused_by_name(tmp_path, how, name):
    save_at(tmp_path, 2, 4)
    newest = tmp_path / "checkpoints" / "step-4"
    file = newest / name
    if how == "flip":
        damage(file)
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    said: list[str] = []
    assert find(tmp_path, "auto", said.append) == tmp_path / "checkpoints" / "step-2"
    if name == "manifest.json" and how == "flip" and atomic_folders.read_manifest(newest):
        assert said  # still JSON, but some hash or name is another
    assert str(newest) in said[0] and "damaged" in said[0] and (name in said[0] or name == "manifest.json")
    with pytest.raises(UserError, match="damaged, so it is not opened"):
        find(tmp_path, str(newest))


def test_where_all_are_damaged_nothing_starts_at_step_0(tmp_path):
    save_at(tmp_path, 2, 4)
    for step in (2, 4):
        damage(tmp_path / "checkpoints" / f"step-{step}" / "retriever" / "weights")
    with pytest.raises(UserError, match="is sound"):
        find(tmp_path, "auto")


def test_where_all_are_gone_nothing_starts_at_step_0(tmp_path):
    save_at(tmp_path, 2)
    shutil.rmtree(tmp_path / "checkpoints" / "step-2")
    with pytest.raises(UserError, match="is sound") as caught:
        find(tmp_path, "auto")
    assert "none, where LATEST names step-2" in str(caught.value)


def go_on_from(run: Path, source: Path) -> list[str]:
    said: list[str] = []
    tidy(run, source, said.append)
    return said


@pytest.mark.parametrize("keep", [2, 3])
def test_a_run_that_goes_back_keeps_its_new_checkpoints_and_drops_those_it_left(tmp_path, keep):
    save_at(tmp_path, 4, 6, 8)
    said = go_on_from(tmp_path, tmp_path / "checkpoints" / "step-4")
    assert [line.split("step-")[1][0] for line in said] == ["6", "8"]
    assert steps(tmp_path) == [4] and find(tmp_path, "auto") == tmp_path / "checkpoints" / "step-4"
    assert (tmp_path / "checkpoints" / "abandoned-step-8").is_dir(), "until the next is saved"
    save_at(tmp_path, 5, keep=keep)
    assert steps(tmp_path) == [4, 5] and not list((tmp_path / "checkpoints").glob("abandoned*"))
    assert find(tmp_path, "auto") == tmp_path / "checkpoints" / "step-5"


def test_damaged_newer_ones_do_not_push_out_what_is_saved_after(tmp_path):
    save_at(tmp_path, 6, 8, 10)
    for step in (8, 10):
        damage(tmp_path / "checkpoints" / f"step-{step}" / "state.json")
    newest = find(tmp_path, "auto")
    assert newest is not None and newest.name == "step-6"
    go_on_from(tmp_path, newest)
    save_at(tmp_path, 7, keep=2)
    assert steps(tmp_path) == [6, 7] and find(tmp_path, "auto") == tmp_path / "checkpoints" / "step-7"


def test_a_run_that_goes_on_from_another_s_checkpoint_puts_its_own_aside(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    save_at(run, 2, 6)
    save_at(other, 4)
    go_on_from(run, other / "checkpoints" / "step-4")
    assert steps(run) == []
    with pytest.raises(UserError, match="put its checkpoints aside") as caught:
        find(run, "auto")  # never step 0 in the place of what it went on from
    assert "abandoned-step-2, abandoned-step-6" in str(caught.value)
    assert steps(other) == [4]
    save_at(run, 5)
    assert steps(run) == [5]


def test_find(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    assert find(run, "never") is None and find(run, "auto") is None
    save_at(run, 2, 4)
    save_at(other, 3)
    assert find(run, "never") is None
    assert find(run, "auto") == run / "checkpoints/step-4"
    assert find(run, str(other)) == other / "checkpoints/step-3"
    assert find(run, str(run / "checkpoints/step-2")) == run / "checkpoints/step-2"


@pytest.mark.parametrize("name", ["", "nowhere", "empty"])
def test_an_explicit_path_without_a_checkpoint_is_an_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint there") as caught:
        find(tmp_path, str(tmp_path / name))
    assert "--resume auto" in str(caught.value)


@pytest.mark.parametrize(("held", "learns"), [(["retriever"], ["generator", "retriever"]), (["a", "b"], ["a"])])
def test_other_models_than_those_that_learn_are_an_error(tmp_path, held, learns):
    """One that the checkpoint lacks, and one that it holds but that is frozen now."""
    save(tmp_path, pair(names=held), TrainState(step=1), keep=1)
    with pytest.raises(UserError, match="holds other models") as caught:
        load(tmp_path / "checkpoints/step-1", pair(names=learns))
    assert ", ".join(held) in str(caught.value) and ", ".join(learns) in str(caught.value)


def test_the_state_is_readable_json(tmp_path):
    save_at(tmp_path, 2, best=1)
    written = json.loads((tmp_path / "checkpoints/step-2/state.json").read_text())
    assert written == asdict(TrainState(step=2, best_step=1))


def test_export_writes_every_model_with_its_card(tmp_path):
    class Module:
        def save(self, folder: Path, state: str) -> None:
            folder.mkdir()
            (folder / "weights").write_text(state)

    modules = {"retriever": Module(), "generator": Module()}
    engines: Any = SimpleNamespace(modules=modules, full_state=lambda name, keep: f"{name} {keep}")
    export_models(tmp_path, engines, {"retriever": "# R – ü", "generator": "# G"})
    assert (tmp_path / "retriever/README.md").read_text(encoding="utf-8") == "# R – ü"
    assert (tmp_path / "generator/weights").read_text() == "generator True"


def test_random_states_are_those_of_the_same_ranks_or_new_ones(tmp_path, monkeypatch):
    """On another number of ranks each draws from a state of its own, the same whenever it is resumed again."""
    torch.manual_seed(3)
    save_at(tmp_path, 7)
    drawn = torch.rand(4)

    def draws(world: int, rank: int, seed: int = 0) -> torch.Tensor:
        torch.manual_seed(99)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.collectives, "world", lambda: world)
            patch.setattr(checkpoint.collectives, "rank", lambda: rank)
            load(tmp_path / "checkpoints" / "step-7", pair("other"), seed)
        return torch.rand(4)

    assert torch.equal(draws(1, 0), drawn)
    found = [draws(2, 0), draws(2, 1), draws(2, 0, seed=1)]
    assert not any(torch.equal(a, b) for a in found for b in [drawn, *found] if a is not b)
    assert torch.equal(draws(2, 0), found[0])
