"""p(z|x,y) of passages that may be mined: the retriever's scores and the generator's likelihood of the row's answer.

Shape legend: D passages examined for a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ds_rag.data.dataset import Example
from ds_rag.evaluation.posteriors import log_softmax
from ds_rag.models.score_folder import open_scores
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.run.open_saved import Saved
from ds_rag.runtime import collectives
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.step.cached_scoring import FrozenReader, scores_of
from ds_rag.step.pair_scores import PairTexts

Wanted = Sequence[tuple[Example, Sequence[int]]]  # rows, and the passages that are examined for each


class GeneratorPosterior:
    """`read` has the generator read the first answers of rows with passages; a call is then arithmetic.

    texts: of all passages. cache: the folder of `--teacher_cache`. pairs, new: how many were wanted, and how many of
    them were scored. Raises UserError if there is no generator.
    """

    def __init__(self, saved: Saved, texts: Sequence[str], cache: str | None = None, console: Console | None = None):
        if saved.generator is None or saved.prompt is None:
            raise UserError(
                "--posterior: there is no generator",
                expected="a run that has one, or --retriever FOLDER and --generator FOLDER in place of --run",
            )
        self.generator, self.prompt, self.lengths, self.texts = saved.generator, saved.prompt, saved.config.data, texts
        self.temperature = float(saved.retriever.temperature)
        say = (console or Console(speaks=False)).say
        if saved.config.scoring.share_prefixes and (reason := share_prefixes(self.generator)):
            say(f"note: this generator cannot share prefixes, so it reads plain sequences: {reason}", "yellow")
        self.store = open_scores(cache, self.generator, self.prompt, self.lengths, say) if cache else None
        self.known: dict[tuple[str, str, int], float] = {}  # (query, answer, passage) -> log p(y|x,z) in nats
        self.pairs = self.new = 0

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

    def ids(self, field: str, texts: list[str]) -> list[np.ndarray]:
        """Token ids of texts of one field, cut as in training."""
        length: int = getattr(self.lengths, f"max_{field}_length")
        return [np.array(ids, dtype=np.int32) for ids in self.prompt.encode(field, texts, length)] if texts else []

    def __call__(self, row: Example, numbers: Sequence[int], scores_D: np.ndarray) -> np.ndarray:
        """(D,) p(z|x,y) over these passages. scores_D: the retriever's, not divided by the temperature."""
        G_D = np.array([self.known[row.query, row.answers[0], int(n)] for n in numbers])
        posterior_D: np.ndarray = np.exp(log_softmax(log_softmax(scores_D / self.temperature) + G_D))
        return posterior_D
