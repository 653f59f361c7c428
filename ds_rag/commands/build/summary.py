"""What a build has found, from its run's results.json: the rankings side by side, and the run's verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ds_rag.evaluation.intervals import show_interval
from ds_rag.run.config_and_results import figures
from ds_rag.run.report.parts import dict_of, list_of, number

FIGURES = ("recall@1", "recall@10", "mrr@10")
WITHOUT_LABELS = ("answer_in_top@1", "answer_in_top@10")
# Ranking -> (which evaluation of the run, what the names of its figures begin with).
RANKINGS = {
    "BM25": ("after", "bm25/"),
    "untrained": ("before", ""),
    "trained": ("after", ""),
    "untrained + BM25": ("before", "hybrid/"),
    "trained + BM25": ("after", "hybrid/"),
}
NOTHING = "not measured: no rows were held out"
KIND = (
    "note: these questions were written by a language model, and kept where the untrained retriever finds their "
    "passage; questions of people (--eval_data FILE) are the better measure"
)


@dataclass(frozen=True)
class Mean:
    """interval: of 95 %; None where there is none."""

    mean: float
    interval: list[float] | None


@dataclass(frozen=True)
class Summary:
    """kind: of the run's verdict, such as "better". lines: the verdict in words, and notes. means: ranking -> figure ->
    its mean, of `questions` questions."""

    kind: str
    lines: list[str]
    means: dict[str, dict[str, Mean]]
    questions: int

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads, and a row for each ranking."""
        names = list(dict.fromkeys(name for found in self.means.values() for name in found))
        rows = [[ranking, *(spell(found.get(name)) for name in names)] for ranking, found in self.means.items()]
        return ["ranking", *names], rows

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(run: Path, generated: bool) -> Summary:
    """Of a finished run. generated: its held-out questions were written by a language model. Raises UserError where
    results.json is damaged."""
    results = figures(run)
    verdict = dict_of(results.get("verdict"))
    names = FIGURES if FIGURES[0] in dict_of(results.get("after")) else WITHOUT_LABELS
    means = {ranking: found for ranking in RANKINGS if (found := means_of(results, ranking, names))}
    counts = dict_of(evaluation(results, "after").get("n"))
    lines = [str(line) for line in list_of(verdict.get("lines"))] or [NOTHING]
    lines += [f"held back: {line}" for line in list_of(verdict.get("held_back"))]
    if generated and means:
        lines.append(KIND)
    return Summary(str(verdict.get("kind", "")), lines, means, int(counts.get(names[0]) or 0))


def means_of(results: Mapping[str, Any], ranking: str, names: tuple[str, ...]) -> dict[str, Mean]:
    """The figures of a ranking that were measured."""
    when, start = RANKINGS[ranking]
    about = evaluation(results, when)
    if start:
        found = dict_of(dict_of(dict_of(results.get("lexical")).get(start.rstrip("/"))).get(when))
    else:
        found = dict_of(results.get(when)) | dict_of(about.get("without_labels"))
    ends = dict_of(about.get("intervals"))
    known = {name: value for name in names if (value := number(found.get(name))) is not None}
    return {name: Mean(value, ends.get(start + name)) for name, value in known.items()}


def evaluation(results: Mapping[str, Any], when: str) -> dict[str, Any]:
    return dict_of(dict_of(results.get("evaluation")).get(when))


def spell(mean: Mean | None) -> str:
    if mean is None:
        return ""
    return f"{mean.mean:.3f}" + (f" ({show_interval(mean.interval)})" if mean.interval else "")
