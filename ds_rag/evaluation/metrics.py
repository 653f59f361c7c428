"""Retrieval and answer metrics. Libraries (ir_measures, torchmetrics; imported when needed) compute the formulas.

Only ties are treated here: libraries break them by document id or by order, so that a scorer that gives every passage
the same score would be credited by accident. Here ties are ranked against the scorer, before the library is called.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence

import numpy as np

from ds_rag.runtime.errors import UserError

NUMBER = re.compile(r"[-+\u2212]?(\d[\d,]*(\.\d*)?|\.\d+)")
TIE = 1e-6  # scores closer than this fraction of the row's largest |score| are equal; float32 has about 7 digits


def pessimistic_ranking(
    ids: Sequence[str], scores: Sequence[float] | np.ndarray, grades: Mapping[str, int], corpus_size: int
) -> list[str]:
    """The retrieved ids of one query, best first, ties broken against the scorer.

    Among equal scores (a chain of neighbours closer than `TIE`) irrelevant passages come first, then lower grades. A
    relevant passage that ties with the last retrieved score is left out, unless the list is the complete corpus:
    passages that were not retrieved may have the same score and rank above it. So retrieve at least one passage more
    than the deepest cutoff. A score that is not finite counts as the lowest.
    """
    assert len(ids) == len(scores) <= corpus_size, (len(ids), len(scores), corpus_size)
    assert len(set(ids)) == len(ids), ids
    if not len(ids):
        return []
    score = np.asarray(scores, dtype=np.float64)
    finite = np.isfinite(score)
    tolerance = TIE * np.abs(score[finite]).max(initial=0.0)
    score = np.where(finite, score, -np.inf)
    grade = np.array([max(0, grades.get(i, 0)) for i in ids])
    order = np.argsort(-score, kind="stable")
    with np.errstate(invalid="ignore"):  # -inf less -inf: a tie
        group = np.concatenate([[0], np.cumsum(score[order][:-1] - score[order][1:] > tolerance)])
    ranked = order[np.lexsort((grade[order], group))]
    if len(ids) == corpus_size:
        return [ids[i] for i in ranked]
    last_group = set(order[group == group[-1]].tolist())
    return [ids[i] for i in ranked if not (grade[i] and i in last_group)]


def retrieval_metrics_per_query(
    top_ids: Sequence[Sequence[str]],
    top_scores: Sequence[Sequence[float]] | np.ndarray,
    qrels: Sequence[Mapping[str, int]],
    *,
    corpus_size: int,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, np.ndarray]:
    """recall@k and hit@k for k in `ks`, mrr@10 and ndcg@10: one float64 value in 0..1 per query, in the given order.

    Args:
        top_ids: for each query the retrieved passage ids, without repeats, in any order.
        top_scores: their scores, higher is better.
        qrels: for each query {passage id: grade}; a grade above 0 is relevant. nDCG uses the grade as its gain. A query
            without relevant passages scores 0, as in trec_eval.
        corpus_size: number of passages that could have been retrieved.
        ks: cutoffs.

    recall@k: the fraction of the relevant passages that is among the first k. hit@k: 1 if any of them is. mrr@10: the
    reciprocal rank of the first relevant passage, 0 below rank 10. Ties as in `pessimistic_ranking`; the formulas are
    trec_eval's, as in ir_measures.
    """
    from ir_measures import RR, Qrel, R, ScoredDoc, Success, iter_calc, nDCG

    assert len(top_ids) == len(top_scores) == len(qrels), (len(top_ids), len(top_scores), len(qrels))
    names = {R @ k: f"recall@{k}" for k in ks} | {Success @ k: f"hit@{k}" for k in ks}
    names |= {RR @ 10: "mrr@10", nDCG @ 10: "ndcg@10"}
    judged, run = [], []
    for q, (ids, scores, grades) in enumerate(zip(top_ids, top_scores, qrels, strict=True)):
        judged += [Qrel(str(q), doc, int(grade)) for doc, grade in grades.items()]
        ranked = pessimistic_ranking(ids, scores, grades, corpus_size)
        run += [ScoredDoc(str(q), doc, float(len(ranked) - rank)) for rank, doc in enumerate(ranked)]
    values = {name: np.zeros(len(qrels)) for name in names.values()}
    for metric in iter_calc(list(names), judged, run) if judged else ():
        values[names[metric.measure]][int(metric.query_id)] = metric.value
    return values


def retrieval_metrics(
    top_ids: Sequence[Sequence[str]],
    top_scores: Sequence[Sequence[float]] | np.ndarray,
    qrels: Sequence[Mapping[str, int]],
    *,
    corpus_size: int,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """The means over the queries of `retrieval_metrics_per_query`, which has the same arguments."""
    return _means(retrieval_metrics_per_query(top_ids, top_scores, qrels, corpus_size=corpus_size, ks=ks))


def without_repeats(*results: Mapping[str, float | None]) -> list[str]:
    """The names of the metrics of some results, in their order, without each hit@k that is the same number as recall@k
    in all of them, as it is where every question has one labelled passage. For tables that people read."""

    def repeats(name: str) -> bool:
        other = name.replace("hit@", "recall@")
        of = [found for found in results if name in found]
        return other != name and all(other in found and found[name] == found[other] for found in of)

    return [name for name in dict.fromkeys(name for found in results for name in found) if not repeats(name)]


def answer_metrics_per_row(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """exact_match, f1 and rougeL, one value in 0..1 per row, the best over the row's references.

    exact_match and f1 follow SQuAD: case, punctuation, articles and extra blanks do not count. If this normalisation
    leaves nothing of both sides, or removes the sign or point by which two numbers differ, `same_answer` compares them.
    rougeL is the F-measure of the longest common subsequence over lower-cased runs of [a-z0-9], as in Google's
    rouge_score, without stemming (so it is 0 for other scripts). torchmetrics computes both, without a download (only
    its ROUGE-Lsum would need nltk).

    Raises:
        UserError: a row without a reference.
    """
    from torchmetrics.functional.text import rouge_score, squad

    assert len(predictions) == len(references), (len(predictions), len(references))
    values = {name: np.zeros(len(predictions)) for name in ("exact_match", "f1", "rougeL")}
    for i, (prediction, known) in enumerate(zip(predictions, references, strict=True)):
        if isinstance(known, str) or not known:
            raise UserError(f"row {i} needs a list of reference answers", found=repr(known))
        bare = [same_answer(prediction, reference) for reference in known]
        usual = [reference for reference, same in zip(known, bare, strict=True) if same is None]
        exact = f1 = 100.0 * any(bare)
        if usual:
            truth = {"id": str(i), "answers": {"text": usual, "answer_start": [0] * len(usual)}}
            scores = squad({"id": str(i), "prediction_text": prediction}, truth)  # type: ignore[arg-type]
            exact, f1 = max(exact, float(scores["exact_match"])), max(f1, float(scores["f1"]))
        rouge = rouge_score([prediction], [list(known)], rouge_keys="rougeL", accumulate="best")
        values["exact_match"][i], values["f1"][i] = exact / 100, f1 / 100
        values["rougeL"][i] = float(rouge["rougeL_fmeasure"])
    return values


def same_answer(prediction: str, reference: str) -> bool | None:
    """Whether two answers are equal, in cases that SQuAD's normalisation gets wrong; None in all other cases.

    If the normalisation leaves nothing of both (an option named "A", symbols), the words are compared with their
    articles, or without words the characters, ignoring case and outer blanks. Two numbers are compared by value: "-1.5"
    is not "15".
    """
    numbers = [text.strip() for text in (prediction, reference)]
    if all(NUMBER.fullmatch(text) for text in numbers):
        one, other = (float(text.replace(",", "").replace("\u2212", "-")) for text in numbers)
        return None if one == other else False
    words = [plain_words(text) for text in (prediction, reference)]
    if any(set(some) - {"a", "an", "the"} for some in words):
        return None
    return words[0] == words[1] if all(words) else prediction.strip().casefold() == reference.strip().casefold()


def plain_words(text: str) -> list[str]:
    """The words in lower case without ASCII punctuation, as SQuAD has them before it removes articles."""
    return text.lower().translate(str.maketrans("", "", string.punctuation)).split()


def answer_metrics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The means over the rows of `answer_metrics_per_row`, which has the same arguments."""
    return _means(answer_metrics_per_row(predictions, references))


def _means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(value.mean()) if len(value) else 0.0 for name, value in values.items()}
