"""The retriever beside BM25, and both together, before training and after: a table for the console and the report."""

from __future__ import annotations

from typing import Any

from ds_rag.run.report.parts import dict_of, shown

LABELLED = ("recall@1", "recall@10", "mrr@10")
UNLABELLED = ("answer_in_top@1", "answer_in_top@5", "answer_in_top@10")


def compared(results: dict[str, Any]) -> tuple[str, ...]:
    """The figures of the table: of labelled passages, or, where no row has one, of passages that contain the answer."""
    return LABELLED if LABELLED[0] in dict_of(results.get("after")) else UNLABELLED


def lexical_table(results: dict[str, Any]) -> list[list[str]]:
    """A row for each ranking: its name and its figures `compared`, "-" where it has none. results: of results.json;
    empty where that has no such lines."""
    lexical = results.get("lexical") or {}
    if not lexical:
        return []
    known = dict_of(results.get("evaluation"))
    before, after = (
        dict_of(results.get(when)) | dict_of(dict_of(known.get(when)).get("without_labels"))
        for when in ("before", "after")
    )
    bm25, hybrid = (dict_of(lexical.get(name)) for name in ("bm25", "hybrid"))
    rankings = {
        "BM25": bm25.get("after"),
        "retriever before": before,
        "retriever before + BM25": hybrid.get("before"),
        "retriever after": after,
        "retriever after + BM25": hybrid.get("after"),
    }
    if not hybrid:  # BM25 is in the retriever's own scores
        rankings = {name: figures for name, figures in rankings.items() if not name.endswith("+ BM25")}
    metrics = compared(results)
    return [[name, *(shown(dict_of(figures).get(metric)) for metric in metrics)] for name, figures in rankings.items()]
