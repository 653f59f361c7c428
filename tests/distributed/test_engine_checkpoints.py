"""Both engines through DeepSpeed's own checkpoint, which a loop of one's own may write: at the same world size the
run goes on bit by bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pair import NEVER_CLIP, Case, Record, make_engines, run_steps
from ranks import run_ranks

pytestmark = pytest.mark.slow  # the product writes its own, see test_engine_state.py
CASES = [
    Case((stage, stage), precision, steps=4, spoil=(1, "generator", float("inf")))
    for stage in (0, 1, 2, 3)
    for precision in ("fp32", "bf16", "fp16")
]


def go_on_and_resume(folder: str, cases: list[Case]) -> list[tuple[Record, Record, Record]]:
    """Per case: the last two steps of a run, the same from its checkpoint, and the same from elsewhere."""
    found = []
    for case in cases:
        tags = Path(folder) / f"{case.stages}{case.precision}"
        engines = make_engines(case)
        run_steps(engines, replace(case, steps=2))
        for name, engine in engines.learning.items():
            engine.save_checkpoint(str(tags), tag=name, save_latest=False)
        went_on = run_steps(engines, case, first=2)
        # Other weights, a step behind them, and another last clip value, all to be overwritten.
        fresh = make_engines(replace(case, seed=9, max_grad_norm=NEVER_CLIP))
        fresh.max_grad_norm = case.max_grad_norm
        run_steps(fresh, replace(case, steps=1, spoil=None))
        for name, engine in fresh.learning.items():
            path, _ = engine.load_checkpoint(str(tags), tag=name)
            assert path is not None and (tags / name).is_dir()
        other = make_engines(replace(case, seed=9))
        found.append((went_on, run_steps(fresh, case, first=2), run_steps(other, case, first=2)))
    assert not list(Path(folder).rglob("latest"))
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, world: int) -> None:
    for results in run_ranks(go_on_and_resume, world, str(tmp_path), CASES):
        for case, (went_on, resumed, other) in zip(CASES, results, strict=True):
            label = f"{case.stages} {case.precision}"
            assert resumed.losses == went_on.losses and resumed.norms == went_on.norms, label
            assert resumed.scales == went_on.scales, label
            for key, parameter in went_on.parameters.items():
                assert torch.equal(resumed.parameters[key], parameter), f"{label} {key}"
            assert other.losses != went_on.losses, label
