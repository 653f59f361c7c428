"""p(z|x,y) of given passages: the retriever's scores and the generator's likelihood of the row's answer.

Shape legend: D passages examined for a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ds_rag.config import DataConfig
from ds_rag.data.dataset import Example
from ds_rag.data.prompt import Prompt
from ds_rag.evaluation.posteriors import log_softmax
from ds_rag.models.generator import Generator
from ds_rag.models.score_store import ScoreStore
from ds_rag.runtime import collectives
from ds_rag.step.cached_scoring import FrozenReader, scores_of
from ds_rag.step.pair_scores import PairTexts

Wanted = Sequence[tuple[Example, Sequence[int]]]  # rows, and the passages that are examined for each


@dataclass
class PassagePosterior:
    """`read` has the generator read the first answers of rows with passages; a call is then arithmetic.

    lengths: at which texts are cut. temperature: of the retriever's scores. texts: of all passages. store: where scores
    are kept; None: nowhere. pairs, new: how many were wanted so far, and how many of them were read.
    """

    generator: Generator
    prompt: Prompt
    lengths: DataConfig
    temperature: float
    texts: Sequence[str]
    store: ScoreStore | None = None
    pairs: int = 0
    new: int = 0
    known: dict[tuple[str, str, int], float] = field(default_factory=dict)  # (query, answer, passage) -> log p(y|x,z)

    def read(self, wanted: Wanted) -> None:
        """Reads what calls for these rows will ask for, each passage once, and forgets what was read before. All ranks
        together, each with rows of its own."""
        own = [(row.query, row.answers[0], [int(n) for n in numbers]) for row, numbers in wanted]
        rows = [row for of_rank in collectives.gather_objects(own) for row in of_rank]
        pairs = [(q, n) for q, (_, _, numbers) in enumerate(rows) for n in numbers]
        passages = sorted({n for _, n in pairs})
        texts = PairTexts(
            self.ids("query", [query for query, _, _ in rows]),
            self.ids("answer", [answer for _, answer, _ in rows]),
            dict(zip(passages, self.ids("passage", [self.texts[n] for n in passages]), strict=True)),
        )
        found = scores_of(FrozenReader(self.generator, self.prompt, texts), pairs, self.store)
        self.pairs, self.new = self.pairs + len(pairs), self.new + found.read
        self.known = {(*rows[q][:2], n): G for (q, n), G in zip(pairs, found.sums_P.tolist(), strict=True)}

    def ids(self, name: str, texts: list[str]) -> list[np.ndarray]:
        """Token ids of texts of one field of the prompt, cut as in training."""
        length: int = getattr(self.lengths, f"max_{name}_length")
        return [np.array(ids, dtype=np.int32) for ids in self.prompt.encode(name, texts, length)] if texts else []

    def __call__(self, row: Example, numbers: Sequence[int], scores_D: np.ndarray) -> np.ndarray:
        """(D,) p(z|x,y) over these passages. scores_D: the retriever's, not divided by the temperature."""
        G_D = np.array([self.known[row.query, row.answers[0], int(n)] for n in numbers])
        posterior_D: np.ndarray = np.exp(log_softmax(log_softmax(scores_D / self.temperature) + G_D))
        return posterior_D
