"""How many questions a comparison of two systems needs before a difference of some size is seen.

Two systems answer the same questions. With d the difference of a question (of recall@1: -1, 0 or 1), a two-sided test
at level a finds a true mean difference D with probability w (its power) from

    n = (z_{1-a/2} + z_w)^2 sd_d^2 / D^2 x design effect

questions on (the paired z test; Card et al. 2020, "With little power comes great responsibility", arXiv 2010.06595).
Before there is a result, two things are assumed. `CHANGED` of the questions differ between the systems, so that
sd_d^2 = CHANGED - D^2 (Connor 1987, for McNemar's test). And questions of one document agree a little: with the
intracluster correlation `ALIKE` and documents of n_g questions the design effect is 1 + (sum n_g^2 / sum n_g - 1) ALIKE
(Kish 1965). On COVID-QA, 1041 questions on 81 articles, three pairs of systems (an encoder before and after training,
and either against BM25) differed on 0.20, 0.31 and 0.35 of the questions, with a correlation of 0.002, 0.02 and 0.05.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np

from ds_rag.evaluation.significance import Clusters, cluster_sums

LEVEL, POWER = 0.05, 0.8
DIFFERENCE = 0.05  # five points
CHANGED = 0.25
ALIKE = 0.02
FACTOR = (NormalDist().inv_cdf(1 - LEVEL / 2) + NormalDist().inv_cdf(POWER)) ** 2  # 7.85


def questions_needed(variance: float, difference: float = DIFFERENCE, design: float = 1.0) -> int:
    """n of the formula above. variance: of d, over questions; design: the design effect."""
    return math.ceil(FACTOR * variance / difference**2 * design)


def assumed_variance(difference: float = DIFFERENCE) -> float:
    """sd_d^2 before there is a result."""
    return CHANGED - min(difference, CHANGED) ** 2


def least_difference(questions: int, design: float = 1.0) -> float:
    """The difference that so many questions show: D of the formula, with `CHANGED`; at most CHANGED, all of them in
    one direction."""
    k = FACTOR * design / max(1, questions)
    return min(CHANGED, math.sqrt(k * CHANGED / (1 + k)))


def assumed_design(documents: Clusters, questions: int) -> float:
    """The design effect before there is a result. documents: of each question; None, as the list or as a name, for a
    question that stands alone."""
    if documents is None or not questions:
        return 1.0
    sizes_G = cluster_sums(np.zeros((questions, 0)), documents)[1]
    return float(1 + ((sizes_G**2).sum() / sizes_G.sum() - 1) * ALIKE)


def needed_by_seen(differences: np.ndarray, documents: Clusters, difference: float = DIFFERENCE) -> int:
    """n by a result: (Q,) differences of the questions, with the variance of their mean over documents as it was seen:
    Q Var(mean) in place of sd_d^2 x design effect."""
    sums_GM, sizes_G = cluster_sums(np.asarray(differences, dtype=np.float64)[:, None], documents)
    count = sizes_G.sum()
    mean = sums_GM[:, 0].sum() / count
    of_mean = float(((sums_GM[:, 0] - sizes_G * mean) ** 2).sum() / count**2)
    return questions_needed(of_mean * count, difference)


def needed_line(documents: Sequence[Hashable], what: str = "held-out questions") -> tuple[str, bool]:
    """(a sentence about how many questions it takes to see a difference of five points, are there fewer?). documents:
    of each question that there is, or None."""
    count, design = len(documents), assumed_design(documents, len(documents))
    needed = questions_needed(assumed_variance(), design=design)
    takes = f"it takes about {round_up(needed):,} to see a difference of {100 * DIFFERENCE:.0f} points"
    if count >= needed:
        return f"{count:,} {what}: {takes}", False
    if least_difference(count, design) >= CHANGED:
        return f"{count:,} {what}: too few to see any difference but a very large one; {takes}", True
    shown = f"they show differences of about {100 * least_difference(count, design):.0f} points or more"
    return f"{count:,} {what}: {shown}; {takes}", True


def round_up(number: int) -> int:
    """To two digits: more would promise too much."""
    digits = max(0, len(str(number)) - 2)
    return math.ceil(number / 10**digits) * 10**digits
