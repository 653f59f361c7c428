"""Steps that are skipped because a value is not finite: where the first such value was, and when the run must stop.

The engines skip such a step together (engines/joint.py). Under fp16 that is how a loss scale is found, and no fault: a
step counts here once the scale cannot shrink any further, or where a value was not finite that the scale has no part in
(an embedding, a log-probability, the loss). In fp32 and bf16 every skipped step counts.

Shape legend: B queries, N passages, C cells, A target tokens, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ds_rag.data.batch import Batch
from ds_rag.engines.joint import StepResult
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


def look(
    micro: int,
    batch: Batch,
    q_BD: torch.Tensor,
    p_ND: torch.Tensor,
    logp_CA: torch.Tensor | None,
    cells: Sequence[int],
    loss: float,
) -> Sign | None:
    """The first place of a micro-batch whose values on this rank are not all finite, after the objective's backward.

    Tensors are the leaves; cells: numbers of those that this rank has read. Of a pool of the world only this rank's own
    share is looked at, or every rank would blame itself.
    """
    queries, passages = q_BD, p_ND
    if batch.shares:
        own = batch.shares[collectives.rank()]
        queries, passages = q_BD[list(own.rows)], p_ND[list(own.columns)]
    nothing = torch.zeros((), device=q_BD.device)
    read_cA = nothing if logp_CA is None else logp_CA.detach()[list(cells)]
    of_cells = nothing if logp_CA is None or logp_CA.grad is None else logp_CA.grad
    of_embeddings = [nothing if x.grad is None else x.grad for x in (q_BD, p_ND)]
    places = [[queries, passages], [read_cA], [torch.tensor(loss, device=q_BD.device)], of_embeddings, [of_cells]]
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
        """Counts a step that was made or skipped; the number in a row now. signs: `look`'s, of its micro-batches."""
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
