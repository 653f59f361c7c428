"""What changes with the step number: the learning rate's factor, and when the index stage runs."""

from __future__ import annotations

import math
import re

from ds_rag.runtime.errors import UserError


def lr_factor(step: int, total: int, warmup: int, kind: str) -> float:
    """Factor on the peak learning rate at `step` (0-based): linear warm-up, then linear or cosine to 0, or constant."""
    if step < warmup:
        return (step + 1) / warmup
    left = (total - step) / max(1, total - warmup)
    return {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[kind]


class Schedule:
    """`due(step)`: does the index stage run after `step` optimizer steps?

    text: "500" (every 500), "0" (never), or ranges "0-100:10,100-:500": every 10 steps up to 100, then every 500.
    Raises UserError where it is neither.
    """

    def __init__(self, text: str, flag: str = "--refresh_index"):
        self.ranges: list[tuple[int, float, int]] = []  # (from, up to, every)
        for piece in str(text).split(","):
            match = re.fullmatch(r"\s*(?:([0-9]{1,9})-([0-9]{0,9}):)?([0-9]{1,9})\s*", piece)
            if not match or (match[2] and int(match[2]) <= int(match[1])):
                raise UserError(
                    f"{flag}: not a schedule",
                    found=text,
                    expected='a number of steps, or "0-100:10,100-:500"',
                )
            self.ranges.append((int(match[1] or 0), float(match[2] or math.inf), int(match[3])))

    def due(self, step: int) -> bool:
        return any(every and first < step <= last and (step - first) % every == 0 for first, last, every in self.ranges)
