"""Two or more systems compared on the questions that they have in common: means, differences, and which of them count.

Every figure is tested for all pairs, with Holm's correction over the pairs; one figure alone, chosen beforehand, has a
verdict. `significance.py` has the mathematics, `seeds_and_folds.py` joins seeds and folds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ds_rag.evaluation import power, significance
from ds_rag.evaluation.seeds_and_folds import System, check_same_data, different_settings
from ds_rag.runtime.errors import UserError, choose

ALPHA = 0.05  # of the verdict, and 1 - the level of the intervals
Ends = tuple[float, float] | None  # None: fewer than two documents


@dataclass
class Options:
    """figure: the one with a verdict. different_data: compare where rows or corpus differ. draws: of documents, and of
    signs."""

    figure: str = "recall@1"
    different_data: bool = False
    draws: int = 10_000
    seed: int = 0


@dataclass
class Mean:
    """One system's figure. seeds: the mean of each; their spread is shown, and not part of the interval."""

    mean: float
    interval: Ends
    seeds: list[float]


@dataclass
class Pair:
    """difference: of the means, b - a, with its interval, by itself. p_holm: adjusted for the pairs of the figure.
    questions_needed: how many such questions would show a difference of five points (power.py)."""

    a: str
    b: str
    difference: float
    interval: Ends
    p: float
    p_holm: float
    questions_needed: int = 0


@dataclass
class Figure:
    """One figure of all systems, on the `n` questions that have a value in each."""

    n: int
    documents: int
    effective_documents: float
    systems: dict[str, Mean]
    pairs: list[Pair]


@dataclass
class Comparison:
    """left_out: questions of a system that not all have. figures: name -> results, `figure` with a verdict a pair."""

    figure: str
    questions: int
    left_out: dict[str, int]
    figures: dict[str, Figure]
    notes: list[str]
    verdicts: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(systems: Sequence[System], options: Options) -> Comparison:
    """All pairs of at least two systems, every figure that they share.

    Raises: UserError for systems without a question or the chosen figure in common, and for different data.
    """
    notes = check_same_data(systems, options.different_data)
    common = set.intersection(*(set(system.ids) for system in systems))
    left_out = {system.name: len(system.ids) - len(common) for system in systems}
    if not common:
        raise UserError("no question in common", found=left_out, expected="evaluations of the same rows, by their ids")
    shared = {name: None for name in systems[0].figures if all(name in system.figures for system in systems)}
    choose(shared, options.figure, "figure")
    ids = sorted(common)  # so that neither the order of systems nor that of rows changes what is drawn
    clusters = clusters_in_common(systems, ids)
    chosen = [values_of(system, ids) for system in systems]
    figures = {}
    for name in shared:
        measured = _figure([system.name for system in systems], [values[name] for values in chosen], clusters, options)
        if measured is not None:
            figures[name] = measured
    if options.figure not in figures:
        raise UserError(f"no question has a value of {options.figure} in all systems", expected=" | ".join(figures))
    notes += different_settings(systems) + notes_on_documents(figures[options.figure], clusters)
    result = Comparison(options.figure, len(ids), left_out, figures, notes)
    result.verdicts = [verdict(options.figure, pair) for pair in figures[options.figure].pairs]
    return result


def clusters_in_common(systems: Sequence[System], ids: list[str]) -> list[str | None]:
    """The document of each question, from the first system that names one."""
    named: dict[str, str] = {}
    for system in systems:
        for id_, name in zip(system.ids, system.clusters, strict=True):
            if name is not None:
                named.setdefault(id_, name)
    return [named.get(id_) for id_ in ids]


def values_of(system: System, ids: list[str]) -> dict[str, np.ndarray]:
    """Each figure of these questions, (S, Q)."""
    place = {id_: n for n, id_ in enumerate(system.ids)}
    order = [place[id_] for id_ in ids]
    return {name: values[:, order] for name, values in system.figures.items()}


def _figure(names: list[str], values: list[np.ndarray], clusters: list[str | None], options: Options) -> Figure | None:
    """values: (S, Q) for each system, S of its own. None where no question has a value in all."""
    known = np.all([np.isfinite(v).all(axis=0) for v in values], axis=0)
    if not known.any():
        return None
    values = [v[:, known] for v in values]
    clusters = [name for name, use in zip(clusters, known, strict=True) if use]
    pairs = list(itertools.combinations(range(len(names)), 2))
    by_question = [v.mean(axis=0) for v in values]  # a seed more is no question more
    columns_QM = np.stack([*by_question, *(by_question[b] - by_question[a] for a, b in pairs)], axis=1)
    ends = [None if math.isnan(e[0]) else e for e in _intervals(columns_QM, clusters, options)]
    sums_GM, sizes_G = significance.cluster_sums(columns_QM, clusters)
    p = significance.randomisation_test(sums_GM[:, len(names) :], options.draws, options.seed)
    adjusted = significance.holm(p)
    means = columns_QM.mean(axis=0).tolist()
    systems = {name: Mean(means[n], ends[n], values[n].mean(axis=1).tolist()) for n, name in enumerate(names)}
    found = [
        Pair(
            names[a],
            names[b],
            means[m],
            ends[m],
            p[n],
            adjusted[n],
            power.needed_by_seen(columns_QM[:, m], clusters),
        )
        for n, (m, (a, b)) in enumerate(zip(range(len(names), len(means)), pairs, strict=True))
    ]
    return Figure(len(columns_QM), len(sizes_G), significance.effective_number(sizes_G), systems, found)


def _intervals(columns_QM: np.ndarray, clusters: list[str | None], options: Options) -> list[tuple[float, float]]:
    return significance.intervals(columns_QM, clusters, options.draws, options.seed, 1 - ALPHA)


def notes_on_documents(figure: Figure, clusters: list[str | None]) -> list[str]:
    """What is to be known about the documents behind the intervals."""
    alone = sum(name is None for name in clusters)
    notes = []
    if alone == len(clusters):
        notes.append(
            "note: by question, since no document is named: if questions share documents, p and intervals are too small"
        )
    elif alone:
        notes.append(f"note: {alone} of {len(clusters)} questions name no document: each counts as one of its own")
    if figure.effective_documents < significance.TRUSTED:
        number = f"{figure.documents} documents, worth {figure.effective_documents:.1f} of one size"
        notes.append(f"warning: {number}: below {significance.TRUSTED} the interval is too narrow to trust")
    return notes


def verdict(figure: str, pair: Pair) -> str:
    """One sentence: which is higher and by how much, or that no difference was shown."""
    points = 100 * abs(pair.difference)
    if pair.p_holm <= ALPHA:
        higher, lower = (pair.b, pair.a) if pair.difference > 0 else (pair.a, pair.b)
        return f"{higher} is higher than {lower} in {figure}, by {points:.1f} points (p after Holm {pair.p_holm:.2g})"
    line = f"no difference between {pair.a} and {pair.b} in {figure} is shown (p after Holm {pair.p_holm:.2g})"
    if pair.interval is None:
        return line
    low, high = (100 * end for end in pair.interval)
    line += f"; it may lie between {low:+.1f} and {high:+.1f} points"
    if not pair.questions_needed:
        return line
    needed = power.round_up(pair.questions_needed)
    return f"{line}; about {needed:,} such questions would show a difference of {100 * power.DIFFERENCE:.0f}"
