"""The best step so far, by `--metric_for_best_model`, and when a run stops because it does not improve."""

from __future__ import annotations

from ds_rag.config import EvaluationConfig
from ds_rag.run.checkpoint import TrainState
from ds_rag.runtime.errors import UserError


def note_metric(state: TrainState, metrics: dict[str, float], settings: EvaluationConfig, step: int) -> int | None:
    """Records the chosen metric of the weights of `step` in `state`; returns the best step so far. Higher is better for
    all metrics. Raises UserError if the metric is not among `metrics` and a flag depends on it."""
    name = settings.metric_for_best_model
    if name not in metrics:
        if settings.early_stopping_patience or settings.load_best_model_at_end:
            raise UserError(
                f"--metric_for_best_model {name}: not among the metrics",
                expected=" | ".join(metrics) or "--eval_data",
            )
        return state.best_step
    if state.best is None or metrics[name] > state.best:
        state.best, state.best_step, state.evaluations_without_gain = metrics[name], step, 0
    else:
        state.evaluations_without_gain += 1
    return state.best_step


def is_time_to_stop(state: TrainState, settings: EvaluationConfig) -> bool:
    """Whether `--early_stopping_patience` evaluations in a row have not improved the metric (0: never)."""
    return 0 < settings.early_stopping_patience <= state.evaluations_without_gain
