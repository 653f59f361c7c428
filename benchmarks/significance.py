"""Do `ds-rag compare`'s test and interval hold what they promise? Simulated evaluations whose truth is known.

    python benchmarks/significance.py --json benchmarks/results/significance.json

Two systems answer the questions of articles as large as those of COVID-QA; outcomes are right or wrong. A fraction of
the questions (TIES) comes out the same for both. For the others each system has a rate of its own in each article, from
a beta distribution, and every question of every seed is right with that rate: so the differences of two questions of
one article have the correlation `icc`. Counted are false alarms (p <= 0.05 where the systems are alike) and how often
the 95 % interval holds the true difference, by article, by question, and with each seed's questions counted as further
questions; and how many questions it takes to find a difference in 80 % of evaluations.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import table

from ds_rag.evaluation import significance
from ds_rag.runtime.output_places import check_json, write_json

# Questions of each article of COVID-QA: 877 in 64 articles, 164 in 17 (`train_beir` and `dev_beir`).
TRAIN = [60, 56, 53, 46, 44, 38, 30, 29, 27, 26, 26, 24, 20, 18, 18, 16, 15, 15, 14, 14, 14, 14, 13, 13, 12, 12]
TRAIN += [11, 11, 11, 11, 10, 9, 9, 9, 9, 8, 8, 8, 7, 7, 7, 6, 5, 5, 5, *[4] * 8, 3, 3, 3, *[2] * 5, 1, 1, 1]
DEV = [35, 28, 21, 13, 12, 11, 8, 7, 5, 4, 4, 4, 4, 3, 2, 2, 1]
SIZES = {"all 81 articles": TRAIN + DEV, "dev_beir, 17 articles": DEV}

RATE, TIES = 0.4, 0.4  # of right answers, of questions that come out the same: 29 % come out differently
AT_ONCE = 100  # simulated evaluations
NORMAL = (
    300  # documents above which totals with random signs are taken as normally distributed, when questions are counted
)
SELDOM = 4  # of so many portions one is also looked at by question, which takes ten times as long
ICCS, FIGURES = (0.05, 0.2), (0.05, 0.1, 0.2, 0.4, 0.8, 0.95)
DIFFERENCES = (0.01, 0.02, 0.03, 0.05, 0.1)
DOCUMENTS = (20, 80, 320, 1280, 5120)
PARTS, WAYS = ("alarms", "found", "coverage"), ("document", "question")  # columns of the table
MOST = 50  # questions of a document, on average, beyond which it is documents that are missing


@dataclass
class World:
    """sizes: questions of each document. icc: of the differences. difference: the true one. seeds: runs of a system."""

    sizes: Sequence[int]
    icc: float
    difference: float = 0.0
    seeds: int = 1

    def rates(self, rate: float, count: int, rng: np.random.Generator) -> np.ndarray:
        """(G, count): a system's rates of right answers, of variance rate (1 - rate) icc / (1 - TIES)."""
        if max(self.sizes) == 1:  # nothing goes together
            return np.full((len(self.sizes), count), rate)
        correlation = self.icc / (1 - TIES)
        strength = 1 / correlation - 1
        return rng.beta(rate * strength, (1 - rate) * strength, (len(self.sizes), count))

    def figures(self, rate: float, count: int, rng: np.random.Generator) -> np.ndarray:
        """(Q, count): one system's outcomes, 0 or 1; those of one document have the correlation icc."""
        strength = 1 / self.icc - 1
        rates = rng.beta(rate * strength, (1 - rate) * strength, (len(self.sizes), count))
        shape = (sum(self.sizes), count)
        return (rng.random(shape) < np.repeat(rates, self.sizes, axis=0)).astype(np.float64)

    def both_rates(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        more = self.difference / (1 - TIES)
        return self.rates(RATE, count, rng), self.rates(RATE + more, count, rng)

    def outcomes(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(seeds, Q, count): the differences of each question, -1, 0 or 1, in `count` simulated evaluations."""
        document = np.repeat(np.arange(len(self.sizes)), self.sizes)
        one, other = (rates[document] for rates in self.both_rates(count, rng))
        differs = rng.random(one.shape) >= TIES
        shape = (self.seeds, *one.shape)
        right = (rng.random(shape) < other).astype(np.int8) - (rng.random(shape) < one).astype(np.int8)
        return right * differs

    def sums(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(G, count): the same summed over a document's questions, one seed, without the single questions."""
        one, other = self.both_rates(count, rng)
        asked = rng.binomial(np.asarray(self.sizes)[:, None], 1 - TIES, one.shape)
        return (rng.binomial(asked, other) - rng.binomial(asked, one)).astype(np.float64)


def portions(simulations: int) -> Iterator[int]:
    return (min(AT_ONCE, simulations - begin) for begin in range(0, simulations, AT_ONCE))


def promises(world: World, simulations: int, draws: int, seed: int = 0) -> dict[str, float]:
    """How often each way raises an alarm (p <= 0.05; with a true difference it is "found"), and how often its interval
    holds the truth."""
    rng = np.random.default_rng(seed)
    documents = np.repeat(np.arange(len(world.sizes)), world.sizes).tolist()
    hits: dict[str, list[float]] = {}
    for number, count in enumerate(portions(simulations)):
        outcomes = world.outcomes(count, rng)
        means = outcomes.mean(axis=0)
        ways: dict[str, tuple[np.ndarray, list[int] | None]] = {"by document": (means, documents)}
        if number % SELDOM == 0:
            ways["by question"] = means, None
        if number % SELDOM == 0 and world.seeds > 1:
            ways["seeds as questions"] = outcomes.reshape(-1, count), None
        for name, (values, clusters) in ways.items():
            sums, _ = significance.cluster_sums(values.astype(np.float64), clusters)
            p = np.array(significance.randomisation_test(sums, draws, seed=number))
            ends = np.array(significance.intervals(values, clusters, draws, seed=number))
            hits.setdefault(f"{'found' if world.difference else 'alarms'}, {name}", []).extend(p <= 0.05)
            hits.setdefault(f"coverage, {name}", []).extend(holding(ends, world.difference))
        plain = np.quantile(plain_means(means, documents, draws, number), [0.025, 0.975], axis=0).T
        hits.setdefault("coverage, plain percentiles", []).extend(holding(plain, world.difference))
    return {name: round(float(np.mean(hit)), 4) for name, hit in hits.items()}


def coverage_of_a_figure(world: World, rate: float, simulations: int, draws: int) -> float:
    """How often the interval of one system's figure holds its true value."""
    rng, kept = np.random.default_rng(0), 0.0
    documents = np.repeat(np.arange(len(world.sizes)), world.sizes).tolist()
    for number, count in enumerate(portions(simulations)):
        ends = significance.intervals(world.figures(rate, count, rng), documents, draws, seed=number)
        kept += holding(np.array(ends), rate).sum()
    return round(kept / simulations, 4)


def plain_means(values: np.ndarray, documents: list[int], draws: int, seed: int) -> np.ndarray:
    return significance.drawn_means(*significance.cluster_sums(values, documents), draws, seed)


def holding(ends: np.ndarray, truth: float) -> np.ndarray:
    return (ends[:, 0] <= truth) & (truth <= ends[:, 1])


def sizes_like(questions: int, documents: int) -> list[int]:
    """Sizes of so many documents, distributed as COVID-QA's; about `questions` in all."""
    profile = np.quantile(SIZES["all 81 articles"], (np.arange(documents) + 0.5) / documents)
    return np.maximum(1, np.round(profile * questions / profile.sum())).astype(int).tolist()


def power(world: World, simulations: int, draws: int) -> float:
    """The fraction of evaluations in which p is at most 0.05."""
    rng, found = np.random.default_rng(0), 0
    for count in portions(simulations):
        sums_GM = world.sums(count, rng)
        if len(sums_GM) > NORMAL:  # totals with random signs: mean 0, variance the sum of squares
            found += int((np.abs(sums_GM.sum(axis=0)) > 1.96 * (sums_GM**2).sum(axis=0) ** 0.5).sum())
        else:
            found += sum(p <= 0.05 for p in significance.randomisation_test(sums_GM, draws))
    return found / simulations


def questions_needed(difference: float, documents: int | None, icc: float, simulations: int, draws: int) -> int | None:
    """Questions with which a difference is found in 80 % of evaluations, to about 5 %; None where no number is enough
    for so few documents; at least one a document. documents None: each question has one of its own."""

    def enough(count: int) -> bool:
        sizes = [1] * count if documents is None else sizes_like(count, documents)
        return power(World(sizes, icc, difference), simulations, draws) >= 0.8

    alone = round(7.85 * 2 * RATE * (1 - RATE) * (1 - TIES) / difference**2)  # by the normal distribution
    low, high = (documents, documents * MOST) if documents else (alone // 2, alone * 2)
    if not enough(high):
        return None
    if enough(low):
        return low
    while high > low * 1.05:
        middle = round((low * high) ** 0.5)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def promises_table(simulations: int, draws: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for (name, sizes), icc, seeds, difference in itertools.product(SIZES.items(), ICCS, (1, 3), (0.0, 0.05)):
        found = promises(World(sizes, icc, difference, seeds), simulations, draws)
        rows.append({"documents": name, "icc": icc, "seeds": seeds, "difference": difference, **found})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def figures_table(simulations: int, draws: int) -> list[dict[str, Any]]:
    rows = []
    for (name, sizes), icc in itertools.product(SIZES.items(), ICCS):
        found = {str(rate): coverage_of_a_figure(World(sizes, icc), rate, simulations, draws) for rate in FIGURES}
        rows.append({"documents": name, "icc": icc, **found})
    return rows


def sizes_of(folder: Path) -> list[int]:
    """Questions of each article of a BEIR folder: the part of the passage id before the hyphen."""
    with (folder / "qrels/test.tsv").open(encoding="utf-8") as stream:
        articles = {row["query-id"]: row["corpus-id"].split("-")[0] for row in csv.DictReader(stream, delimiter="\t")}
    return sorted(Counter(articles.values()).values(), reverse=True)


def needed_table(icc: float, simulations: int, draws: int) -> list[dict[str, Any]]:
    rows = []
    for difference in DIFFERENCES:
        row: dict[str, Any] = {"difference": difference}
        for documents in (*DOCUMENTS, None):
            name = f"{documents} documents" if documents else "one question a document"
            needed = questions_needed(difference, documents, icc, simulations, draws)
            row[name] = needed and int(float(f"{needed:.2g}"))
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--covidqa", type=Path, help="folder with train_beir and dev_beir: counts the articles anew")
    parser.add_argument("--simulations", type=int, default=4000)
    parser.add_argument("--draws", type=int, default=2000, help="of documents, and of signs")
    parser.add_argument("--json")
    args = parser.parse_args()
    check_json(args.json, ("promises", "questions_needed"))
    if args.covidqa:
        train, dev = (sizes_of(args.covidqa / name) for name in ("train_beir", "dev_beir"))
        assert (train, dev) == (TRAIN, DEV), f"other sizes: {train} {dev}"
    rows, figures = promises_table(args.simulations, args.draws), figures_table(args.simulations, args.draws)
    needed = {f"icc {icc}": needed_table(icc, max(200, args.simulations // 10), 1000) for icc in ICCS}
    columns = ["documents", "icc", "seeds", "difference", *(f"{part}, by {way}" for part in PARTS for way in WAYS)]
    columns.append("coverage, plain percentiles")
    shown = [{c: f"{row[c]:.3f}" if isinstance(row.get(c), float) else row.get(c, "") for c in columns} for row in rows]
    print(table(shown))
    print(f"\ncoverage of one figure, by its true value\n{table(figures)}")
    for name, lines in needed.items():
        print(f"\nquestions needed, {name}\n{table(lines)}")
    setting = {"simulations": args.simulations, "draws": args.draws, "rate": RATE, "ties": TIES}
    write_json(args.json, {"promises": rows, "one_figure": figures, "questions_needed": needed, "setting": setting})


if __name__ == "__main__":
    main()
