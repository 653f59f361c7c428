"""Schedules over steps: the length of a run, the factor of the learning rate, and when the index is refreshed."""

from __future__ import annotations

import math
import re

from ds_rag.runtime.errors import UserError

AUTO = "auto"
# Of `--num_train_epochs auto`. In 52 steps an encoder has learned on COVID-QA what docs/results.md shows; after ten
# passes over few rows a model knows them by heart.
ENOUGH_STEPS, MOST_EPOCHS = 50, 10


def epochs_of(epochs: float | str, steps_per_epoch: float) -> float:
    """The number of epochs; for "auto" the fewest that give `ENOUGH_STEPS` steps, at most `MOST_EPOCHS`."""
    if not isinstance(epochs, str):
        return epochs
    return min(MOST_EPOCHS, max(1, math.ceil(ENOUGH_STEPS / steps_per_epoch)))


def warmup_of(steps: int, ratio: float, total: int) -> int:
    """The steps of warm-up: `steps`, or without any that fraction of all steps, rounded up (as transformers' Trainer
    does)."""
    return steps or math.ceil(ratio * total)


def lr_factor(step: int, total: int, warmup: int, kind: str) -> float:
    """The factor of the peak learning rate at `step` (from 0): linear warm-up over `warmup` steps, then, by `kind`,
    linear or cosine decay to 0 at step `total`, or constant."""
    if step < warmup:
        return (step + 1) / warmup
    left = (total - step) / max(1, total - warmup)
    return {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[kind]


class Schedule:
    """`due(step)`: is the index refreshed after `step` optimizer steps?

    text: "500" (every 500 steps), "0" (never), or ranges such as "0-100:10,100-:500": every 10 steps up to step 100,
    then every 500. Raises UserError for any other text.
    """

    def __init__(self, text: str, flag: str = "--refresh_index"):
        self.ranges: list[tuple[int, float, int]] = []  # (from, up to, every)
        for part in str(text).split(","):
            match = re.fullmatch(r"\s*(?:([0-9]{1,9})-([0-9]{0,9}):)?([0-9]{1,9})\s*", part)
            if not match or (match[2] and int(match[2]) <= int(match[1])):
                raise UserError(
                    f"{flag}: not a schedule",
                    found=text,
                    expected='a number of steps, or "0-100:10,100-:500"',
                )
            self.ranges.append((int(match[1] or 0), float(match[2] or math.inf), int(match[3])))

    def due(self, step: int) -> bool:
        return any(every and first < step <= last and (step - first) % every == 0 for first, last, every in self.ranges)
