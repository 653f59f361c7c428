"""Engines saved whole: at the same place the run goes on bit by bit, elsewhere from the same weights and moments."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from pair import (
    NEVER_CLIP,
    Case,
    Record,
    allow_fp16,
    apart,
    blocks_of,
    make_engines,
    off_course,
    parameters,
    run_steps,
)
from ranks import run_ranks

from ds_rag.engines.state import full_tensors
from ds_rag.engines.state_files import load_engine, save_engine

OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu", "pin_memory": False}}}
CASES = [
    Case((stage, stage), precision, steps=4, spoil=(1, "generator", float("inf")))
    for stage in (0, 1, 2, 3)
    for precision in ("fp32", "bf16", "fp16")
]
CASES += [Case((1, 3), steps=4), Case((2, 2), steps=4, extra=OFFLOAD), Case((3, 3), steps=4, extra=OFFLOAD)]
CASES += [Case((2, 3), steps=4, json_optimizer=True)]


def is_slow(case: Case) -> bool:
    """Of a precision's stages `make test` has those whose optimizers differ most."""
    if case.extra:
        return case.stages == (3, 3)
    usual = not case.json_optimizer and case.stages[0] == case.stages[1]
    return usual and (case.precision, case.stages[0]) not in QUICK


QUICK = {("fp32", 0), ("fp32", 3), ("bf16", 0), ("bf16", 1), ("bf16", 3), ("fp16", 2)}


def label(case: Case) -> str:
    return f"{case.stages[0]}{case.stages[1]}-{case.precision}" + "-x" * bool(case.extra) + "-j" * case.json_optimizer


def save_all(engines: Any, folder: Path) -> None:
    for name, engine in engines.learning.items():
        save_engine(engine, folder / name)


def load_all(engines: Any, folder: Path) -> None:
    for name, engine in engines.learning.items():
        load_engine(engine, folder / name)


def go_on_and_resume(folder: str, cases: list[Case]) -> list[tuple[Record, Record, Record]]:
    """Per case: the last two steps of a run, the same from what was saved, and the same from elsewhere."""
    found = []
    for case in cases:
        engines = make_engines(case)
        run_steps(engines, replace(case, steps=2))
        save_all(engines, Path(folder) / label(case))
        went_on = run_steps(engines, case, first=2)
        # Other weights, a step behind them, and another last clip value, all to be overwritten.
        fresh = make_engines(replace(case, seed=9, max_grad_norm=NEVER_CLIP))
        fresh.max_grad_norm = case.max_grad_norm
        run_steps(fresh, replace(case, steps=1, spoil=None))
        load_all(fresh, Path(folder) / label(case))
        other = make_engines(replace(case, seed=9))
        found.append((went_on, run_steps(fresh, case, first=2), run_steps(other, case, first=2)))
    return found


@pytest.mark.parametrize("rest", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "the rest"])
@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, world: int, rest: bool) -> None:
    cases = [case for case in CASES if is_slow(case) == rest]
    for results in run_ranks(go_on_and_resume, world, str(tmp_path), cases):
        for case, (went_on, resumed, other) in zip(cases, results, strict=True):
            assert resumed.losses == went_on.losses and resumed.norms == went_on.norms, label(case)
            assert resumed.scales == went_on.scales, label(case)
            for key, parameter in went_on.parameters.items():
                assert torch.equal(resumed.parameters[key], parameter), f"{label(case)} {key}"
            assert other.losses != went_on.losses, label(case)


HPZ = Case((3, 3), extra={"zero_optimization": {"zero_hpz_partition_size": 2}})


def loaded_after_a_forward(folder: str, case: Case) -> list[torch.Tensor]:
    """Log-probabilities of one batch: by weights that are saved, by others, and by the others' engine once it has
    loaded those."""
    cells, found = blocks_of(case, 1, 0)[0].cells, []

    def look(engines: Any) -> None:
        with torch.no_grad():
            found.append(engines.generator(cells).clone())

    first = make_engines(case)
    look(first)
    save_all(first, Path(folder))
    other = make_engines(replace(case, seed=9))
    look(other)
    for name, engine in other.learning.items():
        load_engine(engine, Path(folder) / name, weights_only=True)
    look(other)
    return found


def test_hierarchical_pieces_of_the_weights_before_are_let_go(tmp_path: Path) -> None:
    for saved, before, after in run_ranks(loaded_after_a_forward, 2, str(tmp_path), HPZ):
        assert torch.equal(after, saved) and not torch.allclose(before, saved)


def save_at(folder: str, cases: list[Case]) -> list[tuple[dict[str, torch.Tensor], Record]]:
    """Two steps, saved; the weights then, and two more steps."""
    found = []
    for case in cases:
        engines = make_engines(case)
        run_steps(engines, replace(case, steps=2))
        save_all(engines, Path(folder) / label(case))
        found.append((parameters(engines), run_steps(engines, case, first=2)))
    return found


def go_on_at(folder: str, pairs: list[tuple[Case, Case]]) -> list[tuple[dict[str, torch.Tensor], bool, Record]]:
    """Engines of the second case go on from the first's: weights as loaded, are the moments those of the files, and
    two steps."""
    from safetensors.torch import load_file

    found = []
    for first, second in pairs:
        if "fp16" in (first.precision, second.precision):
            allow_fp16()
        engines = make_engines(replace(second, seed=9))
        load_all(engines, Path(folder) / label(first))
        same = True
        for name, engine in engines.learning.items():
            files = (Path(folder) / label(first) / name).glob("*.safetensors")
            kept = {k: v for file in files for k, v in load_file(file).items()}
            mine = {k: v for k, v in full_tensors(engine) if v.numel()}
            same = same and all(torch.equal(v, kept[k]) for k, v in mine.items()) and "exp_avg" in str(kept)
        weights = parameters(engines)
        found.append((weights, same, run_steps(engines, replace(second, seed=0), first=2)))
    return found


def case_of(stages: tuple[int, int], precision: str = "fp32", **options: Any) -> Case:
    # Two blocks a step, on one rank or two, and one pool: the same objective everywhere.
    return Case(stages, precision, steps=4, gather=False, **options)


MOVES = [(0, 3), (3, 0), (1, 2), (2, 3), (3, 1), (2, 0)]
TO_MORE, TO_FEWER = [(0, 3), (3, 1), (1, 2)], [(3, 0), (2, 3)]
ELSEWHERE: list[Any] = [(1, 2, "fp32", TO_MORE), (2, 1, "fp32", TO_FEWER)]
for kind, worlds in product(("fp32", "bf16"), ((1, 2), (2, 1), (2, 3))):
    ELSEWHERE.append(pytest.param(*worlds, kind, MOVES, marks=pytest.mark.slow))


@pytest.mark.parametrize(("before", "after", "precision", "moves"), ELSEWHERE)
def test_another_stage_and_another_number_of_ranks(
    tmp_path: Path, before: int, after: int, precision: str, moves: list[tuple[int, int]]
) -> None:
    """The same rows over other ranks: micro-batches times ranks stays six."""

    def case(stage: int, world: int) -> Case:
        return case_of((stage, stage), precision, accumulation=6 // world)

    pairs = [(case(a, before), case(b, after)) for a, b in moves]
    firsts = list({label(a): a for a, _ in pairs}.values())
    saved = run_ranks(save_at, before, str(tmp_path), firsts)[0]
    known = {label(c): result for c, result in zip(firsts, saved, strict=True)}
    for ranks in run_ranks(go_on_at, after, str(tmp_path), pairs):
        for (first, _), (weights, same, went_on) in zip(pairs, ranks, strict=True):
            there, stayed = known[label(first)]
            assert apart(weights, there) == 0 and same
            # From the same start the steps are the same but for the order of sums.
            assert off_course(replaced(went_on, weights), replaced(stayed, there)) < (
                1e-3 if precision == "fp32" else 0.1
            )


def replaced(record: Record, start: dict[str, torch.Tensor]) -> Record:
    return replace(record, start=start)
