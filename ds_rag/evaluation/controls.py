"""What passages are worth to the generator: the same questions answered from other contexts.

closed_book              no passage
random_passage           one passage drawn from the corpus, not a labelled one
retrieved                the first k, as the evaluation answers
gold_passage             the first labelled passage
retrieved_without_first  the k after the first: what the best passage alone brings

Closed book is what the generator knows, gold what it could do with a perfect retriever; a random passage tells being
helped by the right passage from being helped by any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ds_rag.data.dataset import RagData
from ds_rag.evaluation.answer_rows import Question
from ds_rag.evaluation.containment import answers_in_passages
from ds_rag.evaluation.metrics import answer_metrics_per_row
from ds_rag.evaluation.ranked import ONE, Ranked

CONTROLS = ("closed_book", "random_passage", "retrieved", "gold_passage", "retrieved_without_first")
SEED = 0  # of the random passages


def rows_of_controls(data: RagData) -> list[int]:
    """The rows with answers and labelled passages, so that all controls are of the same questions; where no row is
    labelled, all with answers, and there is no gold passage."""
    answered = [n for n, row in enumerate(data.evaluation) if row.answers]
    return [n for n in answered if data.evaluation[n].positives] or answered


def contexts(data: RagData, ranked: Ranked, top_k: int, decode: str) -> dict[str, tuple[list[Question], str]]:
    """The controls that have to be answered, with their decoding: all but `retrieved`, which the evaluation did."""
    rows = rows_of_controls(data)
    asked = {
        "closed_book": ([Question(r, [], ONE) for r in rows], "top1"),
        "random_passage": ([Question(r, random_passage(data, r), ONE) for r in rows], "top1"),
    }
    if all(data.evaluation[r].positives for r in rows):
        asked["gold_passage"] = ([Question(r, data.evaluation[r].positives[:1], ONE) for r in rows], "top1")
    asked["retrieved_without_first"] = ([ranked.question(r, 1, top_k + 1) for r in rows], decode)
    return asked


def random_passage(data: RagData, row: int) -> list[int]:
    """One passage that is not labelled right, the same at every call; none where the corpus holds no other."""
    labelled = set(data.evaluation[row].positives)
    if data.corpus_size <= len(labelled):
        return []
    rng = np.random.default_rng([SEED, row])
    while (number := int(rng.integers(data.corpus_size))) in labelled:
        pass
    return [number]


def control_metrics(data: RagData, asked: Sequence[Question], answers: Sequence[str]) -> dict[str, np.ndarray]:
    """For each question: exact_match, f1 and rougeL; answer_in_context: 1 where a passage of the context contains an
    answer (normalised, whole words); f1_in_context and f1_not_in_context: f1 where it does and where it does not, NaN
    elsewhere."""
    references = [list(data.evaluation[q.row].answers) for q in asked]
    values = answer_metrics_per_row(answers, references)
    found = answers_in_passages(data.texts, [q.passages for q in asked], references)
    inside = np.array([np.nan if row is None else float(any(row)) for row in found])
    values["answer_in_context"] = inside
    values["f1_in_context"] = np.where(inside == 1, values["f1"], np.nan)
    values["f1_not_in_context"] = np.where(inside == 0, values["f1"], np.nan)
    return values


def named(control: str, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As they stand in the table of questions: closed_book/f1."""
    return {f"{control}/{name}": value for name, value in values.items()}
