"""`--num_train_epochs auto`: the length of a run by its number of rows, and whether held-out rows may end it early."""

from __future__ import annotations

from collections.abc import Callable

from ds_rag.config import RunConfig
from ds_rag.config.effects import has_generator, searches_index
from ds_rag.config.schedules import AUTO, ENOUGH_STEPS, MOST_EPOCHS, epochs_of
from ds_rag.data.dataset import RagData

PATIENCE = 3  # evaluations without improvement
MOST_PASSAGES = 20_000  # of a corpus that is encoded after every epoch
MOST_ANSWERS = 100  # that are generated after every epoch


def settle_length(config: RunConfig, data: RagData, steps_per_epoch: float, say: Callable[[str], None]) -> int:
    """The number of optimizer steps. With `--num_train_epochs auto` it is printed, and where held-out rows can judge
    the epochs cheaply, early stopping and the best step are turned on in `config`, unless it sets them."""
    optim, settings = config.optim, config.evaluation
    total = optim.steps(steps_per_epoch)
    if optim.num_train_epochs != AUTO or optim.max_steps > 0:
        return total
    epochs = epochs_of(AUTO, steps_per_epoch)
    limit = f"{ENOUGH_STEPS} steps, at most {MOST_EPOCHS} epochs"
    say(f"length     {epochs:g} epochs of {steps_per_epoch:.1f} steps: {total} steps (auto: {limit})")
    if total < ENOUGH_STEPS:
        rows = len(data.train)
        say(f"note: {rows} rows make {total} steps; with fewer than {ENOUGH_STEPS} little is learned: more rows help")
    if reason := why_not_stopped(config, data, epochs):
        say(f"           no early stopping: {reason}")
        return total
    settings.refresh_index = str(max(1, round(steps_per_epoch)))
    settings.early_stopping_patience, settings.load_best_model_at_end = PATIENCE, True
    say(
        f"           evaluated after every epoch; stops after {PATIENCE} without a better "
        f"{settings.metric_for_best_model}, and exports the best"
    )
    return total


def why_not_stopped(config: RunConfig, data: RagData, epochs: float) -> str:
    """Why `auto` does not stop a run early; "" if it does."""
    settings, set_here = config.evaluation, {"early_stopping_patience", "load_best_model_at_end"} & config.explicit
    answers = len(data.evaluation) if settings.eval_answers and has_generator(config) else 0
    reasons = {
        "there is one epoch": epochs <= 1,
        "no held-out row has a labelled passage": not data.labelled,
        " and ".join(f"--{name} is set" for name in sorted(set_here)): bool(set_here),
        "--refresh_index is set": "refresh_index" in config.flags or settings.refresh_index == "0",
        "--refresh_mode is async": settings.refresh_mode != "sync",
        "candidates come from the index, whose refreshes are part of the training": searches_index(config),
        f"the corpus has more than {MOST_PASSAGES:,} passages": data.corpus_size > MOST_PASSAGES,
        f"more than {MOST_ANSWERS} answers would be generated each time (--eval_answers false)": answers > MOST_ANSWERS,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
