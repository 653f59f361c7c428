"""Measures a pair of models on held-out queries: retrieval from an index of the corpus, and answers.

Used by the index stage of training, and by `ds-rag evaluate`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ds_rag.config import EvaluationConfig
from ds_rag.data.dataset import RagData
from ds_rag.data.prompt import Prompt
from ds_rag.data.token_tables import EvalTokens
from ds_rag.evaluation import fusion
from ds_rag.evaluation.answer_rows import AnswerReader, Question, answer_rows
from ds_rag.evaluation.collapse import Retrieved
from ds_rag.evaluation.containment import answer_in_top
from ds_rag.evaluation.controls import CONTROLS, contexts, control_metrics, named, rows_of_controls
from ds_rag.evaluation.found_table import answers_among, enter, found_table
from ds_rag.evaluation.lexical_sum import CorpusWords, Queries, search_by_sum
from ds_rag.evaluation.metrics import answer_metrics_per_row, retrieval_metrics_per_query
from ds_rag.evaluation.per_question import PerQuestion
from ds_rag.evaluation.posteriors import agreement, log_softmax, posterior
from ds_rag.evaluation.ranked import Ranked
from ds_rag.evaluation.retrieval import Found, SearchOptions, search, search_words
from ds_rag.evaluation.signature import facts_of_data, facts_of_settings, precision
from ds_rag.index import lexical
from ds_rag.index.building import Corpus, index_corpus, scratch
from ds_rag.index.corpus_index import CorpusIndex
from ds_rag.index.vector_store import VectorStore
from ds_rag.models.generator import Generator
from ds_rag.models.retriever import Retriever
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
    retrieved_gold: bool | None  # None: no passage is labelled


@dataclass
class Evaluation:
    """What `evaluate` measured. retrieval and answers: metric -> value in 0..1, empty if they could not be measured.
    without_labels: the same of what needs no labelled passage (docs/evaluation.md). questions: all of it question by
    question, and ranked what was found for them; None where there are no rows.

    Example:
        >>> found = ds_rag.Evaluation(retrieval={"recall@1": 0.5}, answers={"f1": 0.25})
        >>> found.metrics
        {'recall@1': 0.5, 'f1': 0.25}
    """

    retrieval: dict[str, float] = field(default_factory=dict)
    answers: dict[str, float] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    retrieved: Retrieved | None = None
    without_labels: dict[str, float] = field(default_factory=dict)
    questions: PerQuestion | None = None
    ranked: Ranked | None = None

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
        self.corpus_words = CorpusWords(self.corpus)
        self.sums = retriever is not None and retriever.reads_words
        if self.sums and settings.hybrid != "none":
            raise UserError(
                "--hybrid bm25 and a retriever whose scores have BM25 already (--lexical_prior)",
                expected="one of them",
                fix="leave --hybrid out, or --lexical_prior 0: the encoder without its weight of BM25",
            )
        wanted = settings.eval_answers and generator is not None
        self.with_answers = wanted and any(row.answers for row in data.evaluation)

    def run(self, console: Console | None = None, store: VectorStore | None = None) -> Evaluation:
        """Encodes the corpus into a temporary folder, builds an index and evaluates on it; all ranks call it together.
        If there is an index of the same vectors already, use `measure`. console: shows the progress. store: of vectors
        that need not be encoded."""
        if self.retriever is None:
            found = self.found_by_words(console) if self.data.evaluation else None
            return self.judge(*found, lexical.TEMPERATURE) if found else Evaluation()
        corpus = Corpus(self.tokens.passages, self.retriever, self.settings.per_device_eval_batch_size)
        with scratch() as folder:
            # Without a variable for the index, so that its files are closed: NFS keeps a folder while a file is open.
            return self.measure(
                index_corpus(self.retriever, corpus, self.settings, folder, "", store, console).index, console=console
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
        wanted = SearchOptions(self.depth, self.settings.per_device_eval_batch_size)
        temperature = float(retriever.temperature)
        if self.sums:
            queries = Queries(self.tokens.queries, [row.query for row in self.data.evaluation])
            found = search_by_sum(index, retriever, queries, self.corpus_words, wanted, console)
            return self.judge(*found, temperature)
        scores, numbers = search(index, retriever, self.tokens.queries, wanted, console)
        if self.settings.hybrid != "none":
            scores, numbers = fusion.fuse((scores, numbers), self.found_by_words(console), self.depth)
            temperature = fusion.TEMPERATURE
        return self.judge(scores, numbers, temperature)

    @property
    def depth_shown(self) -> int:
        """Passages of each query that figures and the table of questions are about."""
        return max(DEPTH, self.settings.top_k)

    @property
    def depth(self) -> int:
        """Passages that are searched for each query."""
        deepest = max(self.depth_shown, self.settings.rerank)
        return max(deepest, fusion.DEPTH) if self.settings.hybrid != "none" or self.with_lines else deepest

    @property
    def with_lines(self) -> bool:
        measured = bool(self.data.labelled) or any(row.answers for row in self.data.evaluation)
        return self.settings.lexical_lines and len(self.corpus) <= FEW_PASSAGES and measured

    def found_by_words(self, console: Console | None = None) -> Found:
        """What BM25 finds, searched once: the corpus stays. All ranks together."""
        if self.words is None:
            queries = [row.query for row in self.data.evaluation]
            self.words = search_words(self.corpus, queries, self.depth, console)
        return self.words

    def lexical_lines(self, result: Evaluation) -> dict[str, dict[str, float]]:
        """Retrieval metrics, and answer_in_top, of BM25 alone, and, unless it is in `result`'s ranking already, of both
        fused: what a user would try first, and what a user would run. Their values for each question are added to the
        result's table, as `bm25/recall@1`. Empty where the corpus is large or the rows have neither labels nor answers.
        All ranks together."""
        if not self.with_lines or result.ranked is None or result.questions is None:
            return {}
        words = self.found_by_words()
        lines = {"bm25": words}
        if not self.sums:
            lines["hybrid"] = fusion.fuse((result.ranked.scores_QK, result.ranked.numbers_QK), words, self.depth)
        figures: dict[str, dict[str, float]] = {}
        for line, found in lines.items():
            contained = answer_in_top(answers_among(self.data, found[1]), KS)
            means = enter(result.questions, self.data.labelled, named(line, self._retrieval(*found)))
            means |= enter(result.questions, range(len(contained["answer_in_top@1"])), named(line, contained))
            figures[line] = {name.removeprefix(f"{line}/"): mean for name, mean in means.items()}
        return figures

    def judge(self, scores: np.ndarray, numbers: np.ndarray, temperature: float) -> Evaluation:
        """The figures of what was found, (Q, k) scores and passage numbers, best first, by whichever search. On all
        ranks together. temperature: of the scores, in the prior of the passages that the generator reads."""
        table = found_table(self.data, *(found[:, : self.depth_shown] for found in (scores, numbers)))
        result = Evaluation(questions=table, ranked=Ranked(scores, numbers, temperature))
        result.retrieval = enter(table, self.data.labelled, self._retrieval(scores, numbers))
        result.retrieved = self._retrieved(numbers[:, : self.settings.top_k])
        result.without_labels = enter(table, range(len(table.ids)), answer_in_top(table.details["answer_in"], KS))
        if self.with_answers:
            self._answers(result)
        return result

    def _retrieval(self, scores: np.ndarray, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Retrieval metrics of each row whose positives are known; empty if there are none."""
        rows = self.data.labelled
        if not rows:
            return {}
        scores, numbers = (found[:, : self.depth_shown] for found in (scores, numbers))
        kept = [numbers[r] >= 0 for r in rows]  # -1: an approximate index found fewer
        return retrieval_metrics_per_query(
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

    def _answers(self, result: Evaluation) -> None:
        """Answers of the rows that have references, their metrics, and the posterior of the passages that are read; the
        first rows as samples."""
        table, ranked = result.questions, result.ranked
        assert table is not None and ranked is not None
        examples, count = self.data.evaluation, len(self.data.evaluation)
        rows = [n for n, row in enumerate(examples) if row.answers]
        asked = [ranked.question(r, 0, self.settings.top_k, examples[r].answers[0]) for r in rows]
        replies = answer_rows(self.reader, asked, self.settings.decode)
        texts = [reply.text for reply in replies]
        values = answer_metrics_per_row(texts, [list(examples[r].answers) for r in rows])
        result.answers = enter(table, rows, values)
        posteriors = [posterior(q, reply) for q, reply in zip(asked, replies, strict=True)]
        result.without_labels |= enter(table, rows, agreement(asked, posteriors))
        answers, posterior_of = dict(zip(rows, texts, strict=True)), dict(zip(rows, posteriors, strict=True))
        table.details["answer"] = [answers.get(n) for n in range(count)]
        prior_of = {r: np.exp(log_softmax(np.asarray(q.log_prior))).tolist() for r, q in zip(rows, asked, strict=True)}
        table.details["prior"] = [prior_of.get(n) for n in range(count)]
        table.details["posterior"] = [posterior_of.get(n) for n in range(count)]
        result.samples = [self._sample(q, text) for q, text in list(zip(asked, texts, strict=True))[:3]]

    def _sample(self, asked: Question, answer: str) -> Sample:
        example, best = self.data.evaluation[asked.row], next(iter(asked.passages), None)
        passage = self.corpus[best] if best is not None else ""
        labelled = best in example.positives if example.positives else None
        return Sample(example.query, list(example.answers), answer, passage, labelled)

    @property
    def reader(self) -> AnswerReader:
        assert self.generator is not None and self.prompt is not None
        return AnswerReader(self.generator, self.prompt, self.tokens, self.settings)

    def controls(self, result: Evaluation) -> dict[str, dict[str, float]]:
        """What the passages are worth: answers from other contexts, by the names of controls.py. Their values for each
        question are added to the result's table. All ranks together."""
        if not self.with_answers or result.ranked is None or result.questions is None:
            raise UserError("controls need a generator and rows with answers", fix="leave --controls out")
        table, data = result.questions, self.data
        rows = rows_of_controls(data)
        read = [result.ranked.question(r, 0, self.settings.top_k) for r in rows]
        replies = {"retrieved": (read, [table.details["answer"][r] for r in rows])}
        for name, (asked, decode) in contexts(data, result.ranked, self.settings.top_k, self.settings.decode).items():
            replies[name] = asked, [reply.text for reply in answer_rows(self.reader, asked, decode)]
        figures: dict[str, dict[str, float]] = {}
        for name in [name for name in CONTROLS if name in replies]:
            means = enter(table, rows, named(name, control_metrics(data, *replies[name])))
            figures[name] = {key.removeprefix(f"{name}/"): value for key, value in means.items()}
        return figures

    def facts(self) -> dict[str, Any]:
        """What the signature says of data, settings and precision."""
        prompt = self.prompt if self.with_answers else None
        models = {"retriever": self.retriever, "generator": self.generator if self.with_answers else None}
        settings = facts_of_settings(self.settings, self.retriever.settings if self.retriever else None, prompt)
        return {**facts_of_data(self.data), **settings, "precision": precision(models)}
