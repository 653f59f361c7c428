"""What a build has found: rankings side by side, and a sentence that says whether training helped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_rag.evaluation.comparison import ALPHA, Comparison, Mean, Options, Pair, compare
from ds_rag.evaluation.intervals import show_interval
from ds_rag.evaluation.per_question import TABLE, PerQuestion, read_per_question
from ds_rag.evaluation.seeds_and_folds import System, join
from ds_rag.evaluation.significance import TRUSTED

FIGURES = ("recall@1", "recall@10", "mrr@10")
WITHOUT_LABELS = ("answer_in_top@1", "answer_in_top@10")
BEFORE, AFTER, BM25 = "zero-shot", "trained", "BM25"
# Ranking -> (the run's table, what the names of its figures begin with).
RANKINGS = {
    BM25: ("after", "bm25/"),
    BEFORE: ("before", ""),
    AFTER: ("after", ""),
    f"{BEFORE} + BM25": ("before", "hybrid/"),
    f"{AFTER} + BM25": ("after", "hybrid/"),
}


@dataclass(frozen=True)
class Summary:
    """figure: the one with a verdict. means: ranking -> figure -> its mean and interval. verdict: better, not shown,
    worse or unmeasured. lines: in words."""

    figure: str
    questions: int
    means: dict[str, dict[str, Mean]]
    verdict: str
    lines: list[str]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads, and a row for each ranking: the mean of every figure, with its interval."""
        names = list(dict.fromkeys(name for figures in self.means.values() for name in figures))
        rows = [
            [ranking, *(spell(self.means[ranking].get(name)) for name in names)]
            for ranking in RANKINGS
            if ranking in self.means
        ]
        return ["ranking", *names], rows

    def as_json(self) -> dict[str, Any]:
        means = {
            ranking: {name: {"mean": m.mean, "interval": m.interval} for name, m in of.items()}
            for ranking, of in self.means.items()
        }
        return {"figure": self.figure, "questions": self.questions, "rankings": means, "verdict": self.verdict} | {
            "lines": self.lines
        }


def summarise(run: Path, generated: bool) -> Summary:
    """The figures of a finished run. generated: its questions were written by a language model."""
    tables = {when: run / f"{when}{TABLE}" for when in ("before", "after")}
    if not all(file.is_file() for file in tables.values()):
        return Summary("", 0, {}, "unmeasured", ["not measured: no rows were held out"])
    found = {when: read_per_question(file) for when, file in tables.items()}
    names = FIGURES if FIGURES[0] in found["after"].means() else WITHOUT_LABELS
    systems = [s for ranking, (when, start) in RANKINGS.items() if (s := system(ranking, found[when], start, names))]
    together = compare(systems, Options(names[0]))
    means = {s.name: {name: of.systems[s.name] for name, of in together.figures.items()} for s in systems}
    pair = compare([s for s in systems if s.name in (BEFORE, AFTER)], Options(names[0]))
    verdict, lines = judge(pair)
    lines += beside_words(together, systems)
    if generated:
        lines.append(
            "note: these questions were written by a language model, and chosen with the help of the untrained "
            "retriever; questions of people (--eval_data FILE) are the better measure"
        )
    return Summary(names[0], pair.questions, means, verdict, lines)


def system(ranking: str, table: PerQuestion, start: str, names: tuple[str, ...]) -> System | None:
    """A ranking as a system of its own; None where the run has no such figures."""
    metrics = {name: table.metrics[start + name] for name in names if start + name in table.metrics}
    if not metrics:
        return None
    return join(ranking, [PerQuestion(table.ids, table.documents, metrics, signature=table.signature)])


def spell(mean: Mean | None) -> str:
    if mean is None:
        return ""
    return f"{mean.mean:.3f}" + (f" ({show_interval(list(mean.interval))})" if mean.interval else "")


def judge(found: Comparison) -> tuple[str, list[str]]:
    """(the verdict, its sentence with the numbers), of the untrained and the trained retriever."""
    figure, (pair,) = found.figures[found.figure], found.figures[found.figure].pairs
    old, new = (figure.systems[name].mean for name in (pair.a, pair.b))
    if pair.p > ALPHA:
        verdict, said = "not shown", "not better by more than chance"
    else:
        verdict, said = ("better", "better") if pair.difference > 0 else ("worse", "worse")
    documents = f" of {figure.documents} documents" if figure.documents < figure.n else ""
    lines = [
        f"{said}: {found.figure} {old:.3f} before, {new:.3f} after training, {difference(pair)}; "
        f"{figure.n} held-out questions{documents}"
    ]
    if figure.effective_documents < TRUSTED:
        lines.append(
            f"warning: of {figure.effective_documents:.0f} documents in effect: below {TRUSTED} the interval is too "
            "narrow to trust"
        )
    return verdict, lines


def difference(pair: Pair) -> str:
    between = ""
    if pair.interval is not None:
        low, high = (100 * end for end in pair.interval)
        between = f", 95 % interval {low:+.1f} to {high:+.1f}"
    return f"{100 * pair.difference:+.1f} points{between}, p {pair.p:.2g}"


def beside_words(found: Comparison, systems: list[System]) -> list[str]:
    """Which ranking is the best, where it is not the trained retriever's own."""
    means = {s.name: found.figures[found.figure].systems[s.name].mean for s in systems}
    best = max(means, key=lambda name: (means[name], name == AFTER))
    if best in (BEFORE, AFTER):  # the verdict is of these
        return []
    lines = [
        f"the best ranking is {best}, {found.figure} {means[best]:.3f}; the trained retriever's {means[AFTER]:.3f}"
    ]
    if best.endswith("+ BM25"):
        lines.append("--hybrid bm25 ranks by both, in ds-rag evaluate")
    return lines
