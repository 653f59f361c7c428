"""Signs that training goes nowhere: embeddings that fall together, a posterior that says nothing. Warns, once a kind.

spread     the passages' embeddings have come close to one point, measured against the first step's
retrieved  at an evaluation, nearly all queries find the same few passages
peaked     the posterior is sure of one passage for nearly every query, and the prior stays uniform: what the
           generator knows does not reach the retriever
idle       the posterior stays uniform, or the prior's: whatever the passage, the answer is as likely, so the
           generator does not read it. So it is at the start too, hence only after IDLE_STEPS in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MEAN_STEPS = 5  # over which the present spread is averaged
SPREAD = 0.2  # of the starting spread
DISTINCT = 0.1  # of the places that different passages could have taken
FEW_LISTS = 1.5  # passages that are no more than so many lists' are few too
LEAST_QUERIES = 8  # fewer tell nothing
PEAKED, UNIFORM = 0.02, 0.98  # of the entropy of a uniform posterior
UNMOVED = 0.002  # of the same: closer than this the posterior is the prior
PEAKED_STEPS, IDLE_STEPS = 50, 300

TRY = {
    "spread": "a smaller --retriever_learning_rate or --weight_decay, a longer --warmup_steps, a higher --temperature; "
    "where positives are labelled, --contrastive_weight",
    "retrieved": "a smaller --retriever_learning_rate, a longer --warmup_steps; where positives are labelled, "
    "--contrastive_weight; and whether --pooling and the prefixes are those that the retriever was made with",
    "peaked": "a larger --retriever_learning_rate, a lower --temperature or --learn_temperature, --answer_logprob mean",
    "idle": "whether the passages hold the answers (ds-rag evaluate --controls); a pretrained generator, or "
    "--lm_warmup_steps for a new one; a larger --generator_learning_rate; --contrastive_weight to start the retriever",
}


@dataclass(frozen=True)
class Retrieved:
    """What an evaluation found: `distinct` passages in the first `k` places of `queries`, of a corpus of `corpus`.
    wanted: how many distinct passages are labelled right for them; 0 where none is."""

    distinct: int
    queries: int
    k: int
    corpus: int
    wanted: int = 0

    @property
    def share(self) -> float:
        """Of as many different passages as there could be."""
        return self.distinct / max(1, min(self.queries * self.k, self.corpus))

    @property
    def collapsed(self) -> bool:
        places = min(self.queries * self.k, self.corpus)
        if self.queries < LEAST_QUERIES or places < LEAST_QUERIES * self.k:
            return False
        if self.wanted and self.distinct >= self.wanted / 2:  # few passages are what these queries are about
            return False
        return self.distinct <= max(DISTINCT * places, FEW_LISTS * self.k)


def is_peaked(prior: float, posterior: float, uniform: float) -> bool:
    """Mean entropies in nats, and that of a uniform distribution."""
    return uniform > 0 and posterior <= PEAKED * uniform and prior >= UNIFORM * uniform


def is_idle(prior: float, posterior: float, uniform: float) -> bool:
    """A prior that is itself sure of a passage leaves the posterior nothing to say."""
    if uniform <= 0 or prior < 0.1 * uniform:
        return False
    return posterior >= UNIFORM * uniform or abs(posterior - prior) <= UNMOVED * uniform


class CollapseWatch:
    """Told of every step and evaluation; `say` is given each kind of warning once."""

    def __init__(self, say: Callable[[str, str], None], on: bool = True):
        """say: of (kind, text)."""
        self.say, self.on = say, on
        self.said: set[str] = set()
        self.spreads: list[float] = []
        self.start = 0.0
        self.peaked_steps = self.idle_steps = 0

    @property
    def memory(self) -> dict[str, Any]:
        """What outlasts a stop."""
        return {
            "said": sorted(self.said),
            "spreads": self.spreads,
            "start": self.start,
            "peaked_steps": self.peaked_steps,
            "idle_steps": self.idle_steps,
        }

    def remember(self, memory: Mapping[str, Any]) -> None:
        """memory: as `memory` was; nothing where it is not known."""
        self.said = set(memory.get("said", ()))
        self.spreads, self.start = list(memory.get("spreads", ())), memory.get("start", 0.0)
        self.peaked_steps, self.idle_steps = memory.get("peaked_steps", 0), memory.get("idle_steps", 0)

    def after_step(self, step: int, values: Mapping[str, float]) -> None:
        """values: a step's line in metrics.jsonl. A skipped step tells nothing."""
        if not self.on or values.get("skipped"):
            return
        self._spread(step, values["embedding_spread"])
        names = ("prior_entropy", "posterior_entropy", "uniform_entropy")
        if all(name in values for name in names):
            self._posterior(step, *(values[name] for name in names))

    def after_evaluation(self, step: int, found: Retrieved | None) -> None:
        if self.on and found is not None and found.collapsed:
            text = f"{found.queries} held-out queries find {found.distinct} passages in their first {found.k} places, "
            self._warn("retrieved", step, f"{text}of a corpus of {found.corpus}: the retriever has collapsed")

    def _spread(self, step: int, spread: float) -> None:
        self.start = self.start or spread
        self.spreads = [*self.spreads, spread][-MEAN_STEPS:]
        mean = sum(self.spreads) / len(self.spreads)
        if len(self.spreads) == MEAN_STEPS and mean < SPREAD * self.start:
            text = f"the embeddings' spread is {mean:.2g}, and was {self.start:.2g}: the retriever is collapsing"
            self._warn("spread", step, text)

    def _posterior(self, step: int, prior: float, posterior: float, uniform: float) -> None:
        self.peaked_steps = self.peaked_steps + 1 if is_peaked(prior, posterior, uniform) else 0
        self.idle_steps = self.idle_steps + 1 if is_idle(prior, posterior, uniform) else 0
        of = f"posterior entropy {posterior:.3f} nats, prior {prior:.3f}, uniform {uniform:.3f}"
        if self.peaked_steps >= PEAKED_STEPS:
            self._warn("peaked", step, f"the generator is sure of one passage a query, the retriever of none ({of})")
        if self.idle_steps >= IDLE_STEPS:
            text = f"for {IDLE_STEPS} steps no passage has made an answer likelier than another"
            self._warn("idle", step, f"{text} ({of}): the generator ignores them")

    def _warn(self, kind: str, step: int, text: str) -> None:
        if kind not in self.said:
            self.said.add(kind)
            self.say(kind, f"warning: step {step}: {text}\n  to try:   {TRY[kind]}")
