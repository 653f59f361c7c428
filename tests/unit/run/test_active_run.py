"""What a run does with a new index: figures, candidates for its rows, the best step, and what a resumed run skips."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ds_rag.config import build
from ds_rag.evaluation.evaluator import Evaluation
from ds_rag.run.active_run import Run, measure_before, take_up
from ds_rag.run.checkpoint import TrainState
from ds_rag.run.index_refresh import Landed
from ds_rag.run.step_metrics import ProgressText


class Notes:
    """Stands for all that a run works with: keeps what it is told."""

    def __init__(self, step: int, total: int = 8, candidates: bool = True, **flags: Any):
        self.lines: list[tuple[str, int]] = []
        self.values: dict[str, dict[str, Any]] = {}
        lines = SimpleNamespace(lexical_lines=lambda found: {"hybrid": {"recall@1": found.retrieval["recall@1"] + 0.1}})
        self.index = SimpleNamespace(stalled=0.0, best=None, search="search", wanted=True, refresh=self.refresh)
        self.index.evaluator = lines
        table = SimpleNamespace(refresh=self.offer, are_final=False) if candidates else None
        data, engines = SimpleNamespace(evaluation=["a row"]), SimpleNamespace(modules={})
        parts = SimpleNamespace(candidates=table, total_steps=total, data=data, engines=engines)
        saver = SimpleNamespace(save=lambda state: self.lines.append(("save", state.step)))
        watchers = SimpleNamespace(after_evaluation=lambda step, found: self.lines.append(("watch", step)))
        metrics = SimpleNamespace(write=self.write)
        fixed: Any = dict(halt=None, console=None, folder=None)
        self.run = Run(
            parts=parts,  # type: ignore[arg-type]
            config=build(flags),
            index=self.index,  # type: ignore[arg-type]
            saver=saver,  # type: ignore[arg-type]
            watchers=watchers,  # type: ignore[arg-type]
            state=TrainState(step=step),
            metrics=metrics,  # type: ignore[arg-type]
            **fixed,
        )

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        self.lines.append((kind, step))
        self.values[kind] = values

    def offer(self, step: int, search: Any, retriever: Any) -> dict[str, float]:
        assert (search, retriever) == ("search", "weights")
        self.lines.append(("offer", step))
        return {"distinct": 3.0}

    def refresh(self, step: int, progress: bool) -> Landed:
        return landed(step)


def landed(step: int, value: float = 0.5) -> Landed:
    weights: Any = "weights"
    return Landed(Evaluation({"recall@1": value}), step, step, True, weights, {"seconds": 1.0})


def test_a_new_index_in_the_loop_is_written_offered_and_not_done_again():
    notes, text = Notes(step=4), ProgressText({})
    take_up(notes.run, landed(4), text)
    assert notes.lines == [("refresh", 4), ("offer", 4), ("candidates", 4), ("eval", 4), ("watch", 4)]
    assert notes.values["candidates"].keys() == {"distinct", "seconds"}
    assert notes.index.stalled == notes.values["candidates"]["seconds"] > 0
    state = notes.run.state
    assert (state.refreshed, state.best, state.best_step, notes.index.best) == (4, 0.5, 4, 4)
    assert text.metrics == {"recall@1": 0.5}
    take_up(notes.run, landed(6, 0.4), text)
    assert (state.refreshed, state.best_step, state.evaluations_without_gain) == (6, 4, 1)


@pytest.mark.parametrize(("step", "new_candidates"), [(8, True), (6, False)])
def test_no_candidates_where_no_row_is_read_any_more(step, new_candidates):
    notes = Notes(step=step)
    take_up(notes.run, landed(step), ProgressText({}), new_candidates)
    assert ("offer", step) not in notes.lines and notes.run.state.refreshed == step and not notes.index.stalled


def test_the_figures_before_the_first_step_bring_candidates_and_stall_nothing():
    notes = Notes(step=0, load_best_model_at_end=True)
    measure_before(notes.run)
    assert notes.lines == [("refresh", 0), ("offer", 0), ("candidates", 0), ("eval", 0), ("save", 0)]
    assert (notes.run.state.refreshed, notes.run.state.before, notes.index.best) == (0, {"recall@1": 0.5}, 0)
    assert notes.run.state.lexical_before == {"hybrid": {"recall@1": 0.6}}
    assert not notes.index.stalled


def test_rows_that_take_their_candidates_from_the_batch_get_none():
    notes = Notes(step=4, candidates=False)
    take_up(notes.run, landed(4), ProgressText({}))
    assert notes.lines == [("refresh", 4), ("eval", 4), ("watch", 4)] and np.isclose(notes.index.stalled, 0)


def test_candidates_by_words_need_no_index_and_are_given_once():
    """Without rows to evaluate no index is made; later indexes leave the table as it is."""
    notes = Notes(step=0)
    notes.run.index.wanted, notes.run.parts.data.evaluation = False, []
    notes.run.parts.retriever = "weights"
    measure_before(notes.run)
    assert notes.lines == [("offer", 0), ("candidates", 0)]
    notes.run.parts.candidates.are_final = True
    take_up(notes.run, landed(4), ProgressText({}))
    assert notes.lines[2:] == [("refresh", 4), ("watch", 4)]
