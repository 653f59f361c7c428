"""The generator as a judge of passages: each question's first N passages ranked by what they make of its answer.

    prior        log p(z|x) over these N passages: the retriever alone
    likelihood   log p(y|x,z): the generator alone
    posterior    their sum, log p(z|x,y) up to a constant: what teaches the retriever in training

The last two read the row's answer: they are oracles, which measure the teacher, and no way to search.

Shape legend: Q questions, K passages that were found for one, best first, N of them that are ranked again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ds_rag.evaluation.evaluator import KS, Evaluation, Evaluator
from ds_rag.evaluation.found_table import enter
from ds_rag.evaluation.metrics import TIE, retrieval_metrics_per_query
from ds_rag.evaluation.posteriors import log_softmax
from ds_rag.losses import Temper
from ds_rag.models.score_store import ScoreStore
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.step.cached_scoring import FrozenReader, scores_of
from ds_rag.step.pair_scores import PairTexts


@dataclass(frozen=True)
class AnswerScoring:
    """How an answer is scored, as in training. max_answer_length: tokens; answer_logprob: "sum" or "mean" of theirs,
    or a `Temper`. store: where scores are kept, None: nowhere."""

    max_answer_length: int
    answer_logprob: str | Temper
    store: ScoreStore | None = None


def rerank(
    evaluator: Evaluator, result: Evaluation, how: AnswerScoring, console: Console | None = None
) -> dict[str, dict[str, float]]:
    """Retrieval metrics of `result`'s ranking with its first `--rerank` passages in the order of the prior, the
    posterior and the likelihood; all over the same rows, those with labels and an answer (the first one is read). Their
    values for each question are added to the result's table, as `rerank_prior/recall@1`.

    All ranks together. Raises UserError where there is no generator or no such row.
    """
    data, tokens, N = evaluator.data, evaluator.tokens, evaluator.settings.rerank
    rows = [r for r in data.labelled if data.evaluation[r].answers]
    generator, prompt, passages, queries = (
        evaluator.generator,
        evaluator.prompt,
        tokens.generator_passages,
        tokens.generator_queries,
    )
    ranked, table = result.ranked, result.questions
    if None in (generator, prompt, passages, queries, ranked, table) or not rows:
        raise UserError(
            "--rerank needs a generator, and rows with an answer and a labelled passage",
            found="no generator" if generator is None else f"{len(rows)} such rows",
            fix="leave --rerank out",
        )
    assert generator and prompt and passages is not None and queries is not None and ranked and table
    answers = prompt.encode("answer", [data.evaluation[r].answers[0] for r in rows], how.max_answer_length)
    answer_ids = {r: np.array(ids, dtype=np.int32) for r, ids in zip(rows, answers, strict=True)}
    kept = [ranked.numbers_QK[r] >= 0 for r in rows]
    found = [(ranked.scores_QK[r][k], ranked.numbers_QK[r][k]) for r, k in zip(rows, kept, strict=True)]
    pairs = [(r, int(n)) for r, (_, numbers) in zip(rows, found, strict=True) for n in numbers[:N]]
    reader = FrozenReader(generator, prompt, PairTexts(queries, answer_ids, passages))
    scored = scores_of(reader, pairs, how.store, console)
    ends = np.cumsum([len(numbers[:N]) for _, numbers in found])[:-1]
    likelihoods = np.split(scored.log_likelihoods(how.answer_logprob), ends)
    lists: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"prior": [], "posterior": [], "likelihood": []}
    for (scores, numbers), likelihood_N in zip(found, likelihoods, strict=True):
        prior_N = log_softmax(scores[:N].astype(np.float64) / ranked.temperature)
        lists["prior"].append((numbers, scores))
        for name, judged_N in (("posterior", prior_N + likelihood_N), ("likelihood", likelihood_N)):
            order_K, levels_K = reorder(scores, judged_N)
            lists[name].append((numbers[order_K], levels_K))
    qrels, size = [data.qrels(data.evaluation[r]) for r in rows], len(evaluator.corpus)
    figures: dict[str, dict[str, float]] = {}
    for name, judged in lists.items():
        ids, scores = [[data.ids[n] for n in numbers] for numbers, _ in judged], [s.tolist() for _, s in judged]
        values = retrieval_metrics_per_query(ids, scores, qrels, corpus_size=size, ks=KS)
        means = enter(table, rows, {f"rerank_{name}/{metric}": value for metric, value in values.items()})
        figures[name] = {metric.partition("/")[2]: mean for metric, mean in means.items()}
    return figures


def reorder(scores_K: np.ndarray, judged_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order_K, levels_K) of one question: its first N passages by `judged_N`, best first, then the others as they
    were. Equal scores, as `pessimistic_ranking` understands them, have one level; levels fall. scores_K: of all K
    passages, best first."""
    N = len(judged_N)
    order = np.concatenate([np.lexsort((np.arange(N), -judged_N)), np.arange(N, len(scores_K))])
    first, rest = steps_down(judged_N[order[:N]], judged_N), steps_down(scores_K[N:], scores_K)
    return order, -np.concatenate([first, rest + first.max(initial=-1) + 1]).astype(np.float64)


def steps_down(falling: np.ndarray, of: np.ndarray) -> np.ndarray:
    """0, and 1 more at each place where the scores fall by more than what counts as a tie among the scores `of`."""
    tolerance = TIE * np.abs(of).max(initial=0.0)
    return np.concatenate([[0], np.cumsum(-np.diff(falling) > tolerance)]) if len(falling) else np.zeros(0, np.int64)
