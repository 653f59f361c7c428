"""From models, rows and a corpus to what an audit looks at: a sample of rows, their candidates, and all scores of them.

Shape legend: Q rows of the sample, K candidates, W columns (K + 1, the last for a labelled passage that was not found),
N passages of the corpus, n passages that are read, D embedding.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ds_rag.data.dataset import RagData
from ds_rag.data.prompt import Prompt
from ds_rag.data.token_tables import tokenize_field, tokenize_side
from ds_rag.evaluation.audit_scores import AuditScores
from ds_rag.evaluation.cached_reader import CachedReader
from ds_rag.evaluation.containment import answers_in_passages
from ds_rag.evaluation.lexical_sum import weighted_words
from ds_rag.evaluation.retrieval import search_words
from ds_rag.index.corpus_index import CorpusIndex, build_part
from ds_rag.index.encode import encode
from ds_rag.index.lexical import LexicalIndex, best_of
from ds_rag.index.vector_folder import open_vector_store, say_account
from ds_rag.models.retriever import Retriever
from ds_rag.models.score_folder import open_scores
from ds_rag.runtime.console import Console
from ds_rag.step.cached_scoring import FrozenReader, scores_of
from ds_rag.step.pair_scores import Pair, PairScores, PairTexts

QUESTION = "Question:"  # what stands between a passage and the question whose likelihood is read
WORDS, OVERLAP, ASKED, BOTH = "question's words", "answer's words", "reader question", "reader both"  # names of pickers


@dataclass(frozen=True)
class AuditOptions:
    """K: candidates of a row. source: "index" or "bm25". labelled: whether labels are used. batch: texts that are
    embedded at once. index_factory: the type of index that finds the candidates. vectors: the folder of
    `--vector_cache`."""

    K: int
    source: str
    labelled: bool
    batch: int
    index_factory: str
    vectors: str | None = None


def sample_rows(documents: Sequence[Hashable], count: int, seed: int) -> list[int]:
    """Numbers of `count` rows, in their order, the same at every call: a systematic sample. Rows are lined up document
    by document, both in random order, and every (Q / count)-th is taken, so that each row is as likely as any other
    and each document has as many as its size says, to within one.

    documents: of each row; None: a row that stands alone.
    """
    rng, rows = np.random.default_rng(seed), len(documents)
    if count >= rows:
        return list(range(rows))
    own = [("row", n) if name is None else ("document", name) for n, name in enumerate(documents)]
    place = {name: rank for name, rank in zip(dict.fromkeys(own), rng.permutation(len(set(own))), strict=True)}
    line = np.lexsort((rng.permutation(rows), [place[name] for name in own]))
    return sorted(line[((np.arange(count) + rng.random()) * rows / count).astype(int)].tolist())


def find(
    retriever: Retriever, data: RagData, rows: Sequence[int], wanted: AuditOptions, console: Console
) -> tuple[np.ndarray, np.ndarray]:
    """(numbers_QW int64, -1 where there is none; scores_QW float64, the retriever's, in the unit of its inner products,
    BM25 by its weight included). All ranks together, each has all."""
    examples, settings = [data.evaluation[r] for r in rows], (wanted.batch, console)
    queries = [row.query for row in examples]
    query_QD = encode(retriever, tokenize_side(retriever, "query", queries, console, "queries"), "query", *settings)
    K = min(wanted.K, data.corpus_size)
    words = weighted_words(retriever, data.texts[: data.corpus_size])
    every = range(data.corpus_size) if wanted.source == "index" else []
    if wanted.source == "index":
        tokens = tokenize_side(retriever, "passage", data.texts[: data.corpus_size], console, "passages")
        store = open_vector_store(wanted.vectors, retriever, console.say)
        corpus_ND = encode(retriever, tokens, "passage", *settings, store)
        say_account(store, console)
        part = build_part(corpus_ND, wanted.index_factory)
        found_QK = CorpusIndex([part] if part else [], data.corpus_size).search_here(query_QD, K)[1]
        if words is not None:
            sums = (corpus_ND @ q_D + words(q) for q, q_D in zip(queries, query_QD, strict=True))
            found_QK = np.stack([best_of(sum_N, K)[1] for sum_N in sums])
    else:
        found_QK = search_words(data.texts[: data.corpus_size], queries, K, console)[1]
        corpus_ND = np.zeros((0, retriever.hidden_size), np.float32)
    numbers_QW = np.pad(found_QK.astype(np.int64), ((0, 0), (0, 1)), constant_values=-1)
    for q, row in enumerate(examples):
        if wanted.labelled and row.positives and not set(row.positives) & set(found_QK[q].tolist()):
            numbers_QW[q, -1] = row.positives[0]
    rest = [n for n in np.unique(numbers_QW).tolist() if n >= 0 and n not in every]
    tokens = tokenize_side(retriever, "passage", [data.texts[n] for n in rest], console, "other passages")
    rest_nD = encode(retriever, tokens, "passage", *settings) if rest else corpus_ND[:0]
    place = {n: at for at, n in enumerate([*every, *rest])}
    vectors_nD = np.concatenate([corpus_ND, rest_nD])
    at_QW = np.array([[place.get(n, 0) for n in row] for row in numbers_QW.tolist()])
    prior_QW = np.einsum("qwd,qd->qw", vectors_nD[at_QW].astype(np.float64), query_QD.astype(np.float64))
    if words is not None:
        prior_QW += np.array([words(q)[row] for q, row in zip(queries, numbers_QW, strict=True)])
    return numbers_QW, prior_QW


@dataclass(frozen=True)
class AuditSample:
    """Rows with their candidates. numbers_QW: of `passages`, whose last one is empty: no passage; -1: none."""

    queries: list[str]
    answers: list[str]
    passages: list[str]
    numbers_QW: np.ndarray

    @property
    def pairs(self) -> list[Pair]:
        return [(int(q), int(self.numbers_QW[q, w])) for q, w in np.argwhere(self.numbers_QW >= 0)]

    def spread(self, values_P: np.ndarray) -> np.ndarray:
        """(Q, W) float64 of one value a pair; 0 where there is no passage."""
        spread_QW = np.zeros(self.numbers_QW.shape)
        spread_QW[self.numbers_QW >= 0] = values_P
        return spread_QW


def read_answers(
    reader: CachedReader, sample: AuditSample, console: Console
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(answer_QW, nothing_Q, lengths_Q) of `AuditScores`: log p(y|x,z), log p(y|x) with the prompt of an empty passage,
    and an answer's tokens, its end-of-sequence token included as in training. All ranks together."""
    given, several = sample.pairs, len(sample.queries)
    scored = score(
        reader, sample, sample.answers, [*given, *((q, len(sample.passages)) for q in range(several))], console
    )
    rest = scored.sums_P[len(given) :]
    return sample.spread(scored.sums_P[: len(given)]), rest, scored.counts_P[len(given) :]


def read_questions(reader: CachedReader, sample: AuditSample, console: Console) -> np.ndarray:
    """(Q, W): log p(question | passage), which needs no answer (ART: Sachan et al. 2022, arXiv 2206.10658), with the
    prompt "Passage: {passage}", a new line and "Question:"."""
    prompt = Prompt(reader.prompt.tokenizer, "Passage: {passage}\n{query}", max_length=reader.prompt.max_length)
    as_answers = replace(reader.lengths, max_answer_length=reader.lengths.max_query_length)
    asking = replace(reader, prompt=prompt, lengths=as_answers)
    asked = replace(sample, queries=[QUESTION] * len(sample.queries))
    scored = score(asking, asked, sample.queries, sample.pairs, console)
    return sample.spread(scored.sums_P)


def score(
    reader: CachedReader, sample: AuditSample, targets: Sequence[str], pairs: Sequence[Pair], console: Console
) -> PairScores:
    """log p(target | passage, query) of each pair; the passage after the last is the empty one."""

    def ids(field: str, texts: Sequence[str]) -> list[np.ndarray]:
        table = tokenize_field(reader.prompt, field, texts, reader.lengths, console, f"{len(texts)} {field} texts")
        return [table[n] for n in range(len(table))]

    passages = [*ids("passage", sample.passages), np.zeros(0, np.int32)]
    texts = PairTexts(ids("query", sample.queries), ids("answer", targets), passages)
    store = None
    if reader.cache:
        store = open_scores(reader.cache, reader.generator, reader.prompt, reader.lengths, console.say)
    return scores_of(FrozenReader(reader.generator, reader.prompt, texts), pairs, store, console)


def by_words(passages: Sequence[str], queries: Sequence[str], numbers_QW: np.ndarray) -> np.ndarray:
    """(Q, W): BM25 of each query and its passages, over all passages that are read: the sum of the words that they
    share, rare ones weighing more."""
    index = LexicalIndex(passages)
    return np.array([index.scores(q)[row] for q, row in zip(queries, numbers_QW, strict=True)], dtype=np.float64)


def right_ones(data: RagData, rows: Sequence[int], numbers_QW: np.ndarray, labelled: bool) -> np.ndarray:
    """(Q, W) bool: the labelled passages; without labels those that contain one of the row's answers, as
    `answers_in_passages` has it."""
    examples = [data.evaluation[r] for r in rows]
    if labelled:
        right = [
            [n in row.positives for n in numbers] for row, numbers in zip(examples, numbers_QW.tolist(), strict=True)
        ]
        return np.array(right) & (numbers_QW >= 0)
    found = answers_in_passages(data.texts, numbers_QW.tolist(), [row.answers for row in examples])
    return np.array([row or [False] * numbers_QW.shape[1] for row in found]) & (numbers_QW >= 0)


def collect(
    retriever: Retriever,
    reader: CachedReader,
    data: RagData,
    rows: Sequence[int],
    wanted: AuditOptions,
    console: Console,
) -> tuple[AuditScores, AuditSample]:
    """All scores of a sample but the question's likelihood, and its texts. All ranks together, each has all."""
    numbers_QW, prior_QW = find(retriever, data, rows, wanted, console)
    read = [n for n in np.unique(numbers_QW).tolist() if n >= 0]
    place = {n: at for at, n in enumerate(read)} | {-1: -1}
    examples = [data.evaluation[r] for r in rows]
    sample = AuditSample(
        [row.query for row in examples],
        [row.answers[0] for row in examples],
        [data.texts[n] for n in read],
        np.array([[place[n] for n in row] for row in numbers_QW.tolist()]),
    )
    answer_QW, nothing_Q, lengths_Q = read_answers(reader, sample, console)
    words = {WORDS: sample.queries, OVERLAP: sample.answers}
    return AuditScores(
        there_QW=numbers_QW >= 0,
        prior_QW=prior_QW,
        answer_QW=answer_QW,
        nothing_Q=nothing_Q,
        lengths_Q=lengths_Q,
        gold_QW=right_ones(data, rows, numbers_QW, wanted.labelled),
        temperature=float(retriever.temperature),
        others={name: by_words(sample.passages, q, sample.numbers_QW) for name, q in words.items()},
        clusters=[data.cluster_of(row) for row in examples],
    ), sample
