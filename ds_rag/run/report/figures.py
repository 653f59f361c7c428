"""The figures of the first and the last evaluation: the few that people compare, then all of them, folded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ds_rag.evaluation.intervals import show_interval
from ds_rag.evaluation.metrics import without_repeats
from ds_rag.evaluation.signature import unlike
from ds_rag.run.lexical_table import LABELLED, compared, lexical_table
from ds_rag.run.report.parts import card, dict_of, escape, number, shown, table

MEANINGS = {
    "recall@k": "the fraction of a question's labelled passages that are among the first k",
    "hit@k": "whether one of them is among the first k",
    "mrr@10": "one over the rank of the first labelled passage, 0 below rank 10",
    "ndcg@10": "as mrr@10, for several labelled passages: each counts less the further down it stands",
    "answer_in_top@k": "whether one of the first k passages contains an answer, word by word; needs no label",
    "exact_match, f1, rougeL": "the generated answer beside the expected one: equal, words in common, order in common",
    "prior_posterior_agreement": "whether the retriever's first passage also makes the answer likeliest",
}


def rankings_html(results: Mapping[str, Any]) -> str:
    """The retriever before and after, BM25, and both together, with the number of questions; empty where retrieval was
    not measured beside BM25."""
    rows = lexical_table(dict(results), with_intervals=True)
    counts = dict_of(dict_of(dict_of(results.get("evaluation")).get("after")).get("n"))
    names = compared(dict(results))
    questions = counts.get(names[0])
    about = f"{questions} held-out questions" if questions is not None else ""
    if about and names is LABELLED:
        about += " with labels"
    about += ", 95 % intervals" if any("(" in cell for row in rows for cell in row[1:]) else ""
    return card(table(["ranking", *names], rows, about)) if rows else ""


def answers_html(results: Mapping[str, Any]) -> str:
    """Answers before and after; empty where none were generated."""
    before, after = (dict_of(results.get(when)) for when in ("before", "after"))
    names = [name for name in ("exact_match", "f1", "rougeL") if name in after]
    rows = [[when, *(shown(of.get(name)) for name in names)] for when, of in (("before", before), ("after", after))]
    return card(table(["answers", *names], rows)) if names else ""


def all_html(results: Mapping[str, Any]) -> str:
    """Every figure with its interval and number of questions, those that need no labels last, and the signatures."""
    known = dict_of(results.get("evaluation"))
    about = [dict_of(known.get(when)) for when in ("before", "after")]
    before, after = (
        {**dict_of(results.get(when)), **dict_of(facts.get("without_labels"))}
        for when, facts in zip(("before", "after"), about, strict=True)
    )
    names = without_repeats(before, after)
    if not names:
        return ""
    rows = []
    for name in names:
        old, new = number(before.get(name)), number(after.get(name))
        change = "" if old is None or new is None else f"{new - old:+.3f}"
        ends, count = dict_of(about[1].get("intervals")).get(name), dict_of(about[1].get("n")).get(name)
        figures = [f"{value:.3f}" if value is not None else "–" for value in (old, new)]
        rows.append([name, *figures, change, show_interval(ends) if ends else "", "" if count is None else count])
    below = f'<p class="bad">{escape(warning)}</p>' if (warning := unlike(dict(known))) else ""
    for when, facts in zip(("before", "after"), about, strict=True):
        if line := dict_of(facts.get("signature")).get("line"):
            below += f'<p class="dim">{when}: {escape(line)}</p>'
    return (
        card(table(["metric", "before", "after", "change", "95 % interval of after", "n"], rows) + below) + meanings()
    )


def meanings() -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in MEANINGS.items())
    return f'<details class="card"><summary>what the figures mean</summary><table>{rows}</table></details>'
