"""`--num_train_epochs auto` and warm-up as a fraction: against numbers by hand, and with a run on few rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ds_rag.config import OptimConfig, RunConfig, build
from ds_rag.config.flags import parse, read_recipe
from ds_rag.config.schedules import epochs_of, lr_factor
from ds_rag.run.auto_length import MOST_ANSWERS, MOST_PASSAGES, settle_length
from ds_rag.run.resume_rules import fit_length
from ds_rag.runtime.errors import UserError

RECIPES = ("real_encoder", "label_free", "dalm")


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"),
    [(34, 16, 10, 21), (80, 16, 10, 50), (160, 16, 5, 50), (320, 16, 3, 60), (833, 16, 1, 52), (10**6, 16, 1, 62500)],
)
def test_epochs_that_give_fifty_steps(rows: int, batch: int, epochs: int, steps: int) -> None:
    assert epochs_of("auto", rows / batch) == epochs
    assert OptimConfig(num_train_epochs="auto").steps(rows / batch) == steps
    assert OptimConfig(num_train_epochs="auto", max_steps=7).steps(rows / batch) == 7
    assert OptimConfig(num_train_epochs=2.5).steps(rows / batch) == round(2.5 * rows / batch)


@pytest.mark.parametrize(
    ("steps", "ratio", "total", "wanted"), [(0, 0.1, 2, 1), (0, 0.1, 104, 11), (20, 0.0, 2, 20), (0, 0.0, 9, 0)]
)
def test_warm_up_as_a_fraction(steps: int, ratio: float, total: int, wanted: int) -> None:
    """As in transformers, rounded up; of 2 steps the first has the peak rate, where 20 gave a twentieth of it."""
    optim = OptimConfig(warmup_steps=steps, warmup_ratio=ratio)
    assert optim.warmup(total) == wanted
    if total == 2:
        assert lr_factor(0, 2, optim.warmup(2), "linear") == (1.0 if ratio else 1 / 20)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_few_rows_and_a_flag_takes_its_place(name: str) -> None:
    given = ["--config", f"ds_configs/recipes/{name}.yaml", "--train_data", "r.jsonl"]
    assert 1 <= parse(given).optim.warmup(2) < 2 and "warmup_steps" not in read_recipe(given[1])
    optim = parse([*given, "--warmup_steps", "7", "--num_train_epochs", "1"]).optim
    assert (optim.warmup(100), optim.steps(3.0)) == (7, 3)
    assert parse([*given, "--warmup_ratio", "0.5"]).optim.warmup(100) == 50
    quick = parse(["--warmup_ratio", "0.5"])
    assert quick.optim.warmup_steps == 0 and quick.optim.warmup(200) == 100, "of the built-in recipe's 30 steps"


@pytest.mark.parametrize("text", ["many", "0", "-1", "nan"])
def test_no_number_of_epochs(text: str) -> None:
    with pytest.raises(UserError, match="--num_train_epochs"):
        parse(["--num_train_epochs", text])
    with pytest.raises(UserError, match="--num_train_epochs"):
        build({"num_train_epochs": text})


def data(labelled: int = 20, corpus: int = 50, evaluation: int = 20) -> Any:
    return SimpleNamespace(
        train=range(34), labelled=list(range(labelled)), corpus_size=corpus, evaluation=range(evaluation)
    )


def settled(given: dict[str, Any], of: Any, explicit: bool = True) -> tuple[RunConfig, list[str]]:
    names = frozenset(given) if explicit else frozenset()
    config, said = build({"num_train_epochs": "auto"} | given, names, names), list[str]()
    assert settle_length(config, of, 34 / 16, said.append) == 21
    return config, said


def test_held_out_rows_end_an_automatic_run_early() -> None:
    config, said = settled({"train_data": "r.jsonl"}, data())
    settings = config.evaluation
    assert (settings.refresh_index, settings.early_stopping_patience, settings.load_best_model_at_end) == ("2", 3, True)
    assert said[0] == "length     10 epochs of 2.1 steps: 21 steps (auto: 50 steps, at most 10 epochs)"
    assert "34 rows make 21 steps" in said[1] and "stops after 3 without a better recall@1" in said[2]
    config, said = settled({"refresh_index": "30"}, data(), explicit=False)
    assert config.evaluation.refresh_index == "2", "a recipe's schedule is for other data"


@pytest.mark.parametrize(
    ("given", "of", "reason"),
    [
        ({}, data(labelled=0), "no held-out row has a labelled passage"),
        ({}, data(corpus=MOST_PASSAGES + 1), "more than 20,000 passages"),
        ({}, data(evaluation=MOST_ANSWERS + 1), "more than 100 answers"),
        ({"early_stopping_patience": 2}, data(), "--early_stopping_patience is set"),
        ({"load_best_model_at_end": False}, data(), "--load_best_model_at_end is set"),
        ({"refresh_index": "5"}, data(), "--refresh_index is set"),
        ({"refresh_mode": "async"}, data(), "--refresh_mode is async"),
        ({"candidates_from": "index"}, data(), "candidates come from the index"),
    ],
)
def test_where_it_is_not_ended_early(given: dict[str, Any], of: Any, reason: str) -> None:
    before = build(given).evaluation
    config, said = settled(given, of)
    assert config.evaluation == before and reason in said[-1]
    quiet = build({"eval_answers": False, "num_train_epochs": "auto"})
    assert settle_length(quiet, data(evaluation=MOST_ANSWERS + 1), 2.0, said.append) == 20
    assert quiet.evaluation.early_stopping_patience == 3


def test_other_lengths_are_not_touched() -> None:
    for given in ({"num_train_epochs": 2.0}, {"num_train_epochs": "auto", "max_steps": 4}):
        config, said = build(given), list[str]()
        assert settle_length(config, data(), 2.0, said.append) == 4
        assert config.evaluation == RunConfig().evaluation and not said


def test_a_checkpoint_of_before_keeps_its_warm_up_and_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ds_rag.runtime import atomic_folders

    then: dict[str, Any] = {"warmup_steps": 20, "num_train_epochs": 1.0}
    monkeypatch.setattr(atomic_folders, "read_manifest", lambda folder: {"config": then})
    recipe, said = ["--config", "ds_configs/recipes/real_encoder.yaml", "--train_data", "r.jsonl"], list[str]()
    config = parse(recipe)
    fit_length(tmp_path, config, said.append)
    assert (config.optim.warmup_steps, config.optim.warmup_ratio, config.optim.num_train_epochs) == (20, 0.0, 1.0)
    assert said == ["note: --warmup_steps 20 --num_train_epochs 1, as in the checkpoint"]
    config = parse([*recipe, "--warmup_ratio", "0.2", "--num_train_epochs", "3"])
    fit_length(tmp_path, config, said.append)
    assert (config.optim.warmup_steps, config.optim.warmup_ratio, config.optim.num_train_epochs) == (0, 0.2, 3.0)
    then["warmup_ratio"] = 0.0  # of today: its rules are those of every setting
    config = parse(recipe)
    fit_length(tmp_path, config, said.append)
    assert config.optim.warmup_ratio == 0.1 and len(said) == 1
