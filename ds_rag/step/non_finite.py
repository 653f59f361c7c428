"""Steps that are skipped because a value is not finite: where the first such value was, and when the run must stop.

Both engines skip such a step together (engines/engine_pair.py). Under fp16 a skipped step is normal: this is how
dynamic loss scaling finds its scale. So with fp16 a skipped step counts here only if the scale cannot shrink any
further, or if the value does not depend on the scale (an embedding, a log-probability, the loss). In fp32 and bf16
every skipped step counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ds_rag.engines.engine_pair import StepResult
from ds_rag.runtime import collectives
from ds_rag.runtime.errors import RunError

# In the order in which a micro-batch computes them. Only the last two depend on the loss scale.
PLACES = (
    "the retriever's embeddings",
    "the generator's log-probabilities",
    "the loss",
    "the gradient on the retriever's embeddings",
    "the gradient on the generator's log-probabilities",
)
LOSS = PLACES.index("the loss")
Sign = tuple[int, int]  # (number of the micro-batch, index into PLACES)


@dataclass(frozen=True)
class Seen:
    """The values of one micro-batch on this rank, in the order of PLACES.

    With `--pool world` only the embeddings and log-probabilities that this rank computed, so that the message names the
    rank at fault. The gradients are those that the objective returned.
    """

    embeddings: Sequence[torch.Tensor]
    logp: torch.Tensor | None
    loss: float
    d_embeddings: Sequence[torch.Tensor]
    d_logp: torch.Tensor | None


def first_not_finite(micro: int, seen: Seen) -> Sign | None:
    """The first place of micro-batch number `micro` with a value that is not finite; None if all are finite."""
    device = seen.embeddings[0].device
    nothing = torch.zeros((), device=device)
    logp, d_logp = (nothing if x is None else x for x in (seen.logp, seen.d_logp))
    loss = torch.tensor(seen.loss, device=device)
    places = [seen.embeddings, [logp], [loss], seen.d_embeddings, [d_logp]]
    fine = torch.stack([torch.stack([x.detach().isfinite().all() for x in xs]).all() for xs in places]).tolist()
    return (micro, fine.index(False)) if not all(fine) else None


def any_loss_is_bad(signs: Sequence[Sign | None], device: torch.device) -> bool:
    """Is the loss, or a value that it was computed from, not finite on any rank? A collective."""
    bad = any(sign is not None and sign[1] <= LOSS for sign in signs)
    return collectives.all_max({"bad": float(bad)}, device)["bad"] > 0


def earliest(signs: Sequence[Sequence[Sign | None]]) -> str:
    """The first place among the signs of all ranks, as text. signs[rank]: one for each micro-batch."""
    found = [(*sign, rank) for rank, of_rank in enumerate(signs) for sign in of_rank if sign is not None]
    if not found:
        return "within a backward pass: losses and outputs were finite"
    micro, place, rank = min(found)
    return f"{PLACES[place]}, on rank {rank}, micro-batch {micro}"


class BadSteps:
    """Counts the skipped steps in a row for `--max_bad_steps`. Every rank makes the same calls."""

    def __init__(self, most: int, say: Callable[[str], None] = lambda text: None):
        """most: the number of skipped steps in a row at which `check` raises; 0: never. say: prints a warning."""
        self.most, self.say = most, say
        self.in_row, self.found, self.model = 0, "", ""

    def count(self, step: int, result: StepResult, signs: Sequence[Sign | None]) -> int:
        """Takes note of one step, and returns the number of bad steps in a row. A collective if the step was skipped.

        signs: what `first_not_finite` returned for each micro-batch of this rank.
        """
        if not result.skipped:
            self.in_row = 0
            return 0
        every = collectives.gather_objects(list(signs))
        unscaled = any(sign is not None and sign[1] <= LOSS for of_rank in every for sign in of_rank)
        if result.scale_may_shrink and not unscaled:
            return self.in_row  # dynamic loss scaling is still searching
        self.in_row += 1
        whose = " and ".join(f"the {name}'s" for name in result.not_finite) or "no model's"
        self.model = result.not_finite[0] if len(result.not_finite) == 1 else ""
        self.found = (
            f"at step {step} {whose} gradients were not finite (loss scale {result.loss_scale:g}); "
            f"first {earliest(every)}"
        )
        if self.in_row == 1:
            self.say(f"warning: a step is skipped: {self.found}")
        return self.in_row

    @property
    def enough(self) -> bool:
        return bool(self.most) and self.in_row >= self.most

    def check(self, kept: str | None = None) -> None:
        """Raises RunError if `enough`. kept: path of the newest checkpoint, named in the message."""
        if not self.enough:
            return
        rate = f"--{self.model}_learning_rate" if self.model else "--learning_rate"
        raise RunError(
            f"{self.in_row} steps in a row were not finite and were skipped; the run stops and saves nothing",
            found=self.found,
            expected="finite losses and gradients",
            fix=f"a smaller {rate} or --max_grad_norm, a longer --warmup_steps, --bf16 rather than --fp16; "
            f"a larger --max_bad_steps (now {self.most}). Last checkpoint: {kept or 'none'}",
        )
