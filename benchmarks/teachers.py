"""Teachers that are no language model, and a language model's scores in a wrong order: rows for `--teacher scores`.

All give their scores for the same passages, those that `ds-rag score --out` wrote for a fold. Beside the teacher only
the grouping of rows into batches differs from training with the language model, which is by length: so `reader` has
that model's own scores, and is what the others are compared with.

    reader      the language model's own scores
    permuted    the language model's scores of a row, permuted among its passages
    bm25        BM25's score of question and passage
    overlap     the answer's words in the passage, each by its inverse document frequency

Shape legend: K passages of one row.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ds_rag.index.lexical import LexicalIndex, words

Row = dict[str, Any]
Teacher = Callable[[Row, np.random.Generator], Sequence[float]]


def reader(row: Row, rng: np.random.Generator) -> Sequence[float]:
    scores: list[float] = row["teacher_scores"]
    return scores


def permuted(row: Row, rng: np.random.Generator) -> Sequence[float]:
    return [float(score) for score in rng.permutation(row["teacher_scores"])]


def by_words(texts: Sequence[str]) -> Teacher:
    """BM25 of question and passage, with the words' weights from `texts`."""
    index, place = LexicalIndex(texts), {text: n for n, text in enumerate(texts)}

    def scores(row: Row, rng: np.random.Generator) -> Sequence[float]:
        scores_N = index.scores(row["query"])
        return [float(scores_N[place[passage]]) for passage in row["passages"]]

    return scores


def overlap(texts: Sequence[str]) -> Teacher:
    """The sum of log(N / n) over the answer's different words that the passage has, n of N `texts` having the word."""
    counts = Counter(word for listed in words(texts) for word in set(listed))

    def scores(row: Row, rng: np.random.Generator) -> Sequence[float]:
        wanted = set(words([row["answers"][0]])[0])
        return [
            sum(math.log(len(texts) / counts[word]) for word in sorted(wanted & set(of_passage)))
            for of_passage in words(row["passages"])
        ]

    return scores


def write_rows(scored: Path, out: Path, teacher: Teacher, keep: int, seed: int = 0) -> None:
    """The rows with the scores of another teacher, and of each row's passages the `keep` that it finds best, as
    `--candidates_by generator` keeps them.

    Scores are in nats per answer token, so that `--gate_margin` means the same. A teacher's own unit is given the
    spread that the language model's scores have within a row, so that none is surer by its unit alone.
    """
    rows = [json.loads(line) for line in scored.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["teacher_scores"] = [score / row["teacher_tokens"] for score in row["teacher_scores"]]
    rng = np.random.default_rng(seed)
    given = [np.array(teacher(row, rng), dtype=np.float64) for row in rows]
    scale = spread([row["teacher_scores"] for row in rows]) / max(spread(given), 1e-9)
    part = out.with_suffix(".part")
    with part.open("w", encoding="utf-8") as stream:
        for row, scores in zip(rows, given, strict=True):
            kept = sorted(np.argsort(-scores, kind="stable")[:keep].tolist())
            passages = [row["passages"][n] for n in kept]
            stream.write(json.dumps(row | {"passages": passages, "teacher_scores": (scale * scores[kept]).tolist()}))
            stream.write("\n")
    part.replace(out)


def permute_answers(rows: Path, out: Path, seed: int = 0) -> None:
    """The rows, each with the answer of another row and never with one that has its own text: the rows in the order of
    their answers' texts are shifted by more than the most frequent answer has rows, then answers are exchanged."""
    read = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    text = [json.dumps(row.get("answers", row.get("answer"))) for row in read]
    most = Counter(text).most_common(1)[0][1]
    if 2 * most > len(read):
        raise SystemExit(f"{rows}: {most} of {len(read)} rows have the same answer")
    rng = np.random.default_rng(seed)
    noise = {answer: rng.random() for answer in sorted(set(text))}  # equal texts together, their groups in random order
    order = sorted(range(len(read)), key=lambda n: (noise[text[n]], n))
    shift = int(rng.integers(most, len(read) - most + 1))
    part = out.with_suffix(".part")
    changed: list[Row] = [{} for _ in read]
    for place, n in enumerate(order):
        other = read[order[(place + shift) % len(order)]]
        changed[n] = read[n] | {key: other[key] for key in ("answer", "answers") if key in other}
    part.write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")
    part.replace(out)


def spread(scores: Sequence[Sequence[float] | np.ndarray]) -> float:
    """The standard deviation within rows, over all rows."""
    within = [np.asarray(row, dtype=np.float64) - np.mean(row) for row in scores]
    return float(np.concatenate(within).std())
