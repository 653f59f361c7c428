"""The retriever beside BM25, and both together, before training and after: a table for the console and the report."""

from __future__ import annotations

from typing import Any

from ds_rag.run.report.parts import dict_of, shown

LABELLED = ("recall@1", "recall@10", "mrr@10")
UNLABELLED = ("answer_in_top@1", "answer_in_top@5", "answer_in_top@10")


def compared(results: dict[str, Any]) -> tuple[str, ...]:
    """The figures of the table: of labelled passages, or, where no row has one, of passages that contain the answer."""
    return LABELLED if LABELLED[0] in dict_of(results.get("after")) else UNLABELLED


RANKINGS = {  # name -> which evaluation, and what its figures begin with in the table of questions
    "BM25": ("after", "bm25/"),
    "retriever before": ("before", ""),
    "retriever before + BM25": ("before", "hybrid/"),
    "retriever after": ("after", ""),
    "retriever after + BM25": ("after", "hybrid/"),
}


def lexical_table(results: dict[str, Any], with_intervals: bool = False) -> list[list[str]]:
    """A row for each ranking: its name and its figures `compared`, "-" where it has none. results: of results.json;
    empty where that has no such lines. with_intervals: each figure's 95 % interval beside it, where it is known."""
    lexical = results.get("lexical") or {}
    if not lexical:
        return []
    known, rows = dict_of(results.get("evaluation")), []
    for name, (when, prefix) in RANKINGS.items():
        about = dict_of(known.get(when))
        if prefix == "hybrid/" and not lexical.get("hybrid"):  # BM25 is in the retriever's own scores
            continue
        figures = dict_of(dict_of(lexical.get(prefix.removesuffix("/"))).get(when)) if prefix else {}
        if not prefix:
            figures = dict_of(results.get(when)) | dict_of(about.get("without_labels"))
        ends = dict_of(about.get("intervals")) if with_intervals else {}
        cells = [(shown(figures.get(metric)), ends.get(prefix + metric)) for metric in compared(results)]
        rows.append([name, *(f"{value} ({of[0]:.3f}–{of[1]:.3f})" if of else value for value, of in cells)])
    return rows
