"""Signs of collapse: embeddings that become equal, or a posterior that gives the retriever no signal. Each kind of
warning is given once.

spread     the embeddings' spread is a small fraction of that at the first step: they are close to one point
retrieved  at an evaluation, nearly all queries retrieve the same few passages
peaked     for nearly every query the posterior is certain of one passage while the prior stays uniform: what the
           generator knows does not reach the retriever
idle       the posterior stays uniform, or equal to the prior: the answer is equally likely with every passage, so the
           generator ignores them. This is normal at the start, so it counts only after IDLE_STEPS in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MEAN_STEPS = 5  # steps over which the present spread is averaged
SPREAD = 0.2  # collapsed below this fraction of the spread at the start
DISTINCT = 0.1  # collapsed if different passages are at most this fraction of those that there could be,
FEW_LISTS = 1.5  # or at most this many times k, where each query retrieves k
LEAST_QUERIES = 8  # with fewer queries nothing can be said
PEAKED, UNIFORM = 0.02, 0.98  # fractions of the entropy of a uniform distribution
UNMOVED = 0.002  # the same: with a smaller difference of entropies the posterior counts as equal to the prior
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
    """What the queries of an evaluation retrieved: `distinct` different passages in the first `k` ranks of `queries`
    queries, from `corpus` passages. wanted: the number of different passages that are labelled as their positives."""

    distinct: int
    queries: int
    k: int
    corpus: int
    wanted: int = 0

    @property
    def fraction(self) -> float:
        """Different passages as a fraction of the most that there could be."""
        return self.distinct / max(1, min(self.queries * self.k, self.corpus))

    @property
    def collapsed(self) -> bool:
        places = min(self.queries * self.k, self.corpus)
        if self.queries < LEAST_QUERIES or places < LEAST_QUERIES * self.k:
            return False
        if self.wanted and self.distinct >= self.wanted / 2:  # these queries are about few passages
            return False
        return self.distinct <= max(DISTINCT * places, FEW_LISTS * self.k)


def is_peaked(prior: float, posterior: float, uniform: float) -> bool:
    """Whether the posterior is certain and the prior uniform. Arguments: mean entropies in nats, and the entropy of a
    uniform distribution."""
    return uniform > 0 and posterior <= PEAKED * uniform and prior >= UNIFORM * uniform


def is_idle(prior: float, posterior: float, uniform: float) -> bool:
    """Whether the posterior is uniform or equal to the prior (False if the prior is certain of a passage: then nothing
    can be said). Arguments as in `is_peaked`."""
    if uniform <= 0 or prior < 0.1 * uniform:
        return False
    return posterior >= UNIFORM * uniform or abs(posterior - prior) <= UNMOVED * uniform


class CollapseWatch:
    """Is given every step and evaluation; calls `say` once for each kind of warning."""

    def __init__(self, say: Callable[[str, str], None], on: bool = True):
        """say: called with (kind, text)."""
        self.say, self.on = say, on
        self.said: set[str] = set()
        self.spreads: list[float] = []
        self.start = 0.0
        self.peaked_steps = self.idle_steps = 0

    @property
    def memory(self) -> dict[str, Any]:
        """The state that a checkpoint must contain."""
        return {
            "said": sorted(self.said),
            "spreads": self.spreads,
            "start": self.start,
            "peaked_steps": self.peaked_steps,
            "idle_steps": self.idle_steps,
        }

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Restores the state. memory: an earlier value of `memory`; missing entries are as at the start."""
        self.said = set(memory.get("said", ()))
        self.spreads, self.start = list(memory.get("spreads", ())), memory.get("start", 0.0)
        self.peaked_steps, self.idle_steps = memory.get("peaked_steps", 0), memory.get("idle_steps", 0)

    def after_step(self, step: int, values: Mapping[str, float]) -> None:
        """values: the step's line in metrics.jsonl. Skipped steps are ignored."""
        if not self.on or values.get("skipped"):
            return
        self._spread(step, values["embedding_spread"])
        names = ("prior_entropy", "posterior_entropy", "uniform_entropy")
        if all(name in values for name in names):
            self._posterior(step, *(values[name] for name in names))

    def after_evaluation(self, step: int, found: Retrieved | None) -> None:
        if self.on and found is not None and found.collapsed:
            text = f"{found.queries} held-out queries find {found.distinct} passages in their first {found.k} ranks, "
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
            text = f"the generator is certain of one passage for each query, the retriever of none ({of})"
            self._warn("peaked", step, text)
        if self.idle_steps >= IDLE_STEPS:
            text = f"for {IDLE_STEPS} steps no passage has made an answer likelier than another has"
            self._warn("idle", step, f"{text} ({of}): the generator ignores them")

    def _warn(self, kind: str, step: int, text: str) -> None:
        if kind not in self.said:
            self.said.add(kind)
            self.say(kind, f"warning: step {step}: {text}\n  to try:   {TRY[kind]}")
