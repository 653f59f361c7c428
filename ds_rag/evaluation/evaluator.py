"""Measures a pair of models on held-out queries: retrieval from an index of the corpus, and answers.

Used by the index stage of training, and by `ds-rag evaluate`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ds_rag.config import EvaluationConfig
from ds_rag.data.dataset import RagData
from ds_rag.data.prompt import Prompt
from ds_rag.data.token_tables import EvalTokens
from ds_rag.evaluation import fusion
from ds_rag.evaluation.answering import Answerer
from ds_rag.evaluation.collapse import Retrieved
from ds_rag.evaluation.metrics import answer_metrics, retrieval_metrics
from ds_rag.evaluation.retrieval import Found, Wanted, search, search_words
from ds_rag.index import lexical
from ds_rag.index.building import Corpus, index_corpus, scratch
from ds_rag.index.corpus_index import CorpusIndex
from ds_rag.models.generator import Generator
from ds_rag.models.retriever import Retriever
from ds_rag.runtime import collectives, fault_injection, stop_signals
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

KS = (1, 5, 10)
DEPTH = 101  # passages retrieved for the metrics: more than every cutoff, so that ties at a cutoff are seen
FEW_PASSAGES = 100_000  # of a corpus whose texts BM25 searches without being asked: a fraction of encoding them


@dataclass
class Sample:
    """One evaluated query, for people to read."""

    query: str
    gold: list[str]
    answer: str
    passage: str  # the best one; empty if an approximate index found none
    retrieved_gold: bool


@dataclass
class Evaluation:
    """What `evaluate` measured. retrieval and answers: metric -> value in 0..1, empty if they could not be measured.

    Example:
        >>> found = ds_rag.Evaluation(retrieval={"recall@1": 0.5}, answers={"f1": 0.25})
        >>> found.metrics
        {'recall@1': 0.5, 'f1': 0.25}
    """

    retrieval: dict[str, float] = field(default_factory=dict)
    answers: dict[str, float] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    retrieved: Retrieved | None = None
    found: Found | None = None  # scores and passage numbers of each query, best first
    temperature: float = 1.0  # of these scores, in the prior over passages

    @property
    def metrics(self) -> dict[str, float]:
        return {**self.retrieval, **self.answers}


class Evaluator:
    """Evaluates repeatedly on the same rows, corpus and settings."""

    def __init__(
        self,
        retriever: Retriever | None,
        generator: Generator | None,
        prompt: Prompt | None,
        data: RagData,
        tokens: EvalTokens,
        settings: EvaluationConfig,
    ):
        """retriever: None: passages are found by their words, with BM25."""
        self.retriever, self.generator, self.prompt = retriever, generator, prompt
        self.data, self.tokens, self.settings = data, tokens, settings
        self.corpus = data.texts[: data.corpus_size]
        self.words: Found | None = None  # what BM25 finds, once it has searched
        wanted = settings.eval_answers and generator is not None
        self.with_answers = wanted and any(row.answers for row in data.evaluation)

    def run(self, console: Console | None = None) -> Evaluation:
        """Encodes the corpus into a temporary folder, builds an index and evaluates on it; all ranks call it together.
        If there is an index of the same vectors already, use `measure`. console: shows the progress."""
        if self.retriever is None:
            found = self.found_by_words(console) if self.data.evaluation else None
            return self.judge(*found, lexical.TEMPERATURE) if found else Evaluation()
        corpus = Corpus(self.tokens.passages, self.retriever, self.settings.per_device_eval_batch_size)
        with scratch() as folder:
            # Without a variable for the index, so that its files are closed: NFS keeps a folder while a file is open.
            return self.measure(
                index_corpus(self.retriever, corpus, self.settings, folder, "", console=console).index, console=console
            )

    def measure(
        self, index: CorpusIndex, retriever: Retriever | None = None, console: Console | None = None
    ) -> Evaluation:
        """Evaluates on an existing index, all ranks together. retriever: the one that made the index's vectors, to
        embed the queries, if it is not the evaluator's own. console: shows the search's progress."""
        retriever = retriever or self.retriever
        if not self.data.evaluation:
            return Evaluation()
        assert retriever is not None
        wanted = Wanted(self.depth, self.settings.per_device_eval_batch_size)
        scores, numbers = search(index, retriever, self.tokens.queries, wanted, console)
        temperature = float(retriever.temperature)
        if self.settings.hybrid != "none":
            scores, numbers = fusion.fuse((scores, numbers), self.found_by_words(console), self.depth)
            temperature = fusion.TEMPERATURE
        return self.judge(scores, numbers, temperature)

    @property
    def depth(self) -> int:
        """Passages that are searched for each query."""
        deepest = max(DEPTH, self.settings.top_k, self.settings.rerank)
        return max(deepest, fusion.DEPTH) if self.settings.hybrid != "none" or self.with_lines else deepest

    @property
    def with_lines(self) -> bool:
        return self.settings.lexical_lines and len(self.corpus) <= FEW_PASSAGES and bool(self.data.labelled)

    def found_by_words(self, console: Console | None = None) -> Found:
        """What BM25 finds, searched once: the corpus stays. All ranks together."""
        if self.words is None:
            queries = [row.query for row in self.data.evaluation]
            self.words = search_words(self.corpus, queries, self.depth, console)
        return self.words

    def lexical_lines(self, result: Evaluation) -> dict[str, dict[str, float]]:
        """Retrieval metrics of BM25 alone, and of BM25 and `result`'s ranking fused: what a user would try first, and
        what a user would run. Empty where retrieval is not measured or the corpus is large. All ranks together."""
        if not self.with_lines or result.found is None:
            return {}
        words = self.found_by_words()
        fused = fusion.fuse(result.found, words, self.depth)
        return {"bm25": self._retrieval(*words), "hybrid": self._retrieval(*fused)}

    def judge(self, scores: np.ndarray, numbers: np.ndarray, temperature: float) -> Evaluation:
        """The figures of what was found, (Q, k) scores and passage numbers, best first, by whichever search. On all
        ranks together. temperature: of the scores, in the prior of the passages that the generator reads."""
        result = Evaluation(found=(scores, numbers), temperature=temperature)
        result.retrieval = self._retrieval(scores, numbers)
        result.retrieved = self._retrieved(numbers[:, : self.settings.top_k])
        if self.with_answers:
            result.answers, result.samples = self._answers(scores, numbers, temperature)
        return result

    def _retrieval(self, scores: np.ndarray, numbers: np.ndarray) -> dict[str, float]:
        """Retrieval metrics over the rows whose positives are known; empty if there are none."""
        rows = self.data.labelled
        if not rows:
            return {}
        scores, numbers = (found[:, : max(DEPTH, self.settings.top_k)] for found in (scores, numbers))
        kept = [numbers[r] >= 0 for r in rows]  # -1: an approximate index found fewer
        return retrieval_metrics(
            [[self.data.ids[n] for n in numbers[r][k]] for r, k in zip(rows, kept, strict=True)],
            [scores[r][k] for r, k in zip(rows, kept, strict=True)],
            [self.data.qrels(self.data.evaluation[r]) for r in rows],
            corpus_size=len(self.corpus),
            ks=KS,
        )

    def _retrieved(self, numbers_Qk: np.ndarray) -> Retrieved:
        """How many different passages all queries together retrieve, and how many are labelled."""
        found = np.unique(numbers_Qk[numbers_Qk >= 0])
        wanted = {p for row in self.data.evaluation for p in row.positives}
        return Retrieved(len(found), len(numbers_Qk), numbers_Qk.shape[1], len(self.corpus), len(wanted))

    def _answers(
        self, scores: np.ndarray, numbers: np.ndarray, temperature: float
    ) -> tuple[dict[str, float], list[Sample]]:
        """(answer metrics over the rows with answers, split among the ranks; the first rows as samples)."""
        rows = [n for n, row in enumerate(self.data.evaluation) if row.answers]
        top = numbers[:, : self.settings.top_k]
        wide = scores[:, : self.settings.top_k].astype(np.float64)  # a miss is the lowest float32: no overflow
        priors = log_softmax(wide / temperature)
        texts = self._answer_rows(rows, [list(t[t >= 0]) for t in top], priors, self.settings.decode)
        references = [list(self.data.evaluation[r].answers) for r in rows]
        samples = [
            Sample(
                self.data.evaluation[r].query,
                list(self.data.evaluation[r].answers),
                text,
                self.corpus[top[r][0]] if top[r][0] >= 0 else "",
                bool(top[r][0] in self.data.evaluation[r].positives),
            )
            for r, text in list(zip(rows, texts, strict=True))[:3]
        ]
        return answer_metrics(texts, references), samples

    def controls(self) -> dict[str, dict[str, float]]:
        """Answer metrics without any passage (closed book), and with the labelled passage (gold): what passages are
        worth. Raises UserError without a generator."""
        if not self.with_answers:
            raise UserError("controls need a generator and rows with answers", fix="leave --controls out")
        rows = [n for n, row in enumerate(self.data.evaluation) if row.positives and row.answers]
        references = [list(self.data.evaluation[r].answers) for r in rows]
        gold: list[list[int]] = [[] for _ in self.data.evaluation]
        for r in rows:
            gold[r] = list(self.data.evaluation[r].positives[:1])
        nothing: list[list[int]] = [[] for _ in self.data.evaluation]
        flat = np.zeros((len(self.data.evaluation), 1))
        return {
            "closed_book": answer_metrics(self._answer_rows(rows, nothing, flat, "top1"), references),
            "gold_passage": answer_metrics(self._answer_rows(rows, gold, flat, "top1"), references),
        }

    def _answer_rows(self, rows: list[int], passages: list[list[int]], priors: np.ndarray, decode: str) -> list[str]:
        """The answers to these rows, in their order; rank r decodes every world-th one."""
        assert self.generator is not None and self.prompt is not None
        table, queries = self.tokens.generator_passages, self.tokens.generator_queries
        assert table is not None and queries is not None
        settings = self.settings
        batch = settings.per_device_eval_batch_size
        answerer = Answerer(self.generator, self.prompt, decode, settings.max_new_tokens, batch)
        mine = rows[collectives.rank() :: collectives.world()]
        own = len(mine)
        if answerer.in_step:  # the same number of rows on every rank; a surplus row's answer is dropped
            mine += rows[: -(-len(rows) // collectives.world()) - own]
        answers: list[str] = []
        for start in range(0, -(-len(rows) // collectives.world()), batch):  # equally often on every rank
            fault_injection.point("evaluate")
            stop_signals.safe_place()
            if start >= len(mine):
                continue
            chunk = mine[start : start + batch]
            read = [[table[n] for n in passages[r]] or [np.zeros(0, np.int32)] for r in chunk]
            found = answerer.answer(
                [queries[r] for r in chunk],
                read,
                [priors[r][: len(p)] for r, p in zip(chunk, read, strict=True)],
            )
            answers += [a.text for a in found]
        by_rank = collectives.gather_objects(answers[:own])
        return [by_rank[n % collectives.world()][n // collectives.world()] for n in range(len(rows))]


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Log-softmax over the last axis, float64."""
    x = x.astype(np.float64)
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
