"""Steps that are skipped because a value is not finite: where the first such value was, and when the run must stop.

The engines skip such a step together (engines/engine_pair.py). Under fp16 that is how a loss scale is found, and no fault: a
step counts here once the scale cannot shrink any further, or where a value was not finite that the scale has no part in
(an embedding, a log-probability, the loss). In fp32 and bf16 every skipped step counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ds_rag.engines.engine_pair import StepResult
from ds_rag.runtime import collectives
from ds_rag.runtime.errors import RunError

# In the order in which a micro-batch makes them. Those before the last two no loss scale has touched.
PLACES = (
    "the retriever's embeddings",
    "the generator's log-probabilities",
    "the loss",
    "the gradient on the retriever's embeddings",
    "the gradient on the generator's log-probabilities",
)
LOSS = PLACES.index("the loss")
Sign = tuple[int, int]  # micro-batch, number of the place


@dataclass(frozen=True)
class Seen:
    """What one micro-batch has given on this rank, in the order of PLACES: of a pool of the world only this rank's own
    share, or every rank would blame itself. Gradients are the objective's."""

    embeddings: Sequence[torch.Tensor]
    logp: torch.Tensor | None
    loss: float
    d_embeddings: Sequence[torch.Tensor]
    d_logp: torch.Tensor | None


def first_not_finite(micro: int, seen: Seen) -> Sign | None:
    """The first place of micro-batch `micro` whose values are not all finite."""
    device = seen.embeddings[0].device
    nothing = torch.zeros((), device=device)
    logp, d_logp = (nothing if x is None else x for x in (seen.logp, seen.d_logp))
    loss = torch.tensor(seen.loss, device=device)
    places = [seen.embeddings, [logp], [loss], seen.d_embeddings, [d_logp]]
    fine = torch.stack([torch.stack([x.detach().isfinite().all() for x in xs]).all() for xs in places]).tolist()
    return (micro, fine.index(False)) if not all(fine) else None


def any_loss_is_bad(signs: Sequence[Sign | None], device: torch.device) -> bool:
    """Is the loss, or what it is made of, not finite on any rank? A collective."""
    bad = any(sign is not None and sign[1] <= LOSS for sign in signs)
    return collectives.all_max({"bad": float(bad)}, device)["bad"] > 0


def earliest(signs: Sequence[Sequence[Sign | None]]) -> str:
    """Of every rank's signs the first, in words."""
    found = [(*sign, rank) for rank, own in enumerate(signs) for sign in own if sign is not None]
    if not found:
        return "within a backward pass: losses and outputs were finite"
    micro, place, rank = min(found)
    return f"{PLACES[place]}, on rank {rank}, micro-batch {micro}"


class BadSteps:
    """Counts the skipped steps in a row, as `--max_bad_steps` means them. All ranks call it alike."""

    def __init__(self, most: int, say: Callable[[str], None] = lambda text: None):
        """most: steps in a row after which `check` raises; 0: never."""
        self.most, self.say = most, say
        self.in_row, self.found, self.model = 0, "", ""

    def count(self, step: int, result: StepResult, signs: Sequence[Sign | None]) -> int:
        """Counts a step that was made or skipped; the number in a row now. signs: by
        `first_not_finite`, of its micro-batches."""
        if not result.skipped:
            self.in_row = 0
            return 0
        every = collectives.gather_objects(list(signs))
        untouched = any(sign is not None and sign[1] <= LOSS for own in every for sign in own)
        if result.scale_may_shrink and not untouched:
            return self.in_row  # the loss scale is being found
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
        """Raises RunError where it is enough. kept: the newest checkpoint."""
        if not self.enough:
            return
        rate = f"--{self.model}_learning_rate" if self.model else "--learning_rate"
        raise RunError(
            f"{self.in_row} steps in a row were not finite, so none was made; the run stops and saves nothing",
            found=self.found,
            expected="losses and gradients that are finite",
            fix=f"a smaller {rate} or --max_grad_norm, a longer --warmup_steps, --bf16 rather than --fp16; "
            f"--max_bad_steps (now {self.most}) bears more. Last checkpoint: {kept or 'none'}",
        )
