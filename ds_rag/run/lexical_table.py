"""The retriever beside BM25, and both together, before training and after: a table for the console and the report."""

from __future__ import annotations

from typing import Any

from ds_rag.run.report.parts import dict_of, shown

COMPARED = ("recall@1", "recall@10", "mrr@10")


def lexical_table(results: dict[str, Any]) -> list[list[str]]:
    """A row for each ranking: its name and its figures COMPARED, "-" where it has none. results: of results.json; empty
    where that has no such lines."""
    lexical = results.get("lexical") or {}
    if not lexical:
        return []
    before, after = results.get("before"), results.get("after")
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
    return [[name, *(shown(dict_of(figures).get(metric)) for metric in COMPARED)] for name, figures in rankings.items()]
