"""States of the random number generators: saved to resume a run, and restored to repeat a forward pass."""

from __future__ import annotations

import torch


def random_states() -> dict[str, torch.Tensor]:
    """The states of the random number generators of the CPU and of this rank's GPU."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
