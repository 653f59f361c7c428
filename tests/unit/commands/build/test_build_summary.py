"""What a build says at its end, from the results of its run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ds_rag.commands.build.options import Wanted
from ds_rag.commands.build.page import write_page
from ds_rag.commands.build.state import Entry, State
from ds_rag.commands.build.summary import Summary, summarise

SAID = "better than before training, by more than chance: recall@1 0.250 -> 0.500"


def results(**more: Any) -> dict[str, Any]:
    """As a run leaves them: BM25 is measured before and after, the untrained retriever has no interval."""
    found = {
        "before": {"recall@1": 0.25, "mrr@10": 0.3},
        "after": {"recall@1": 0.5, "mrr@10": 0.6, "f1": 0.1},
        "lexical": {
            "bm25": {"before": {"recall@1": 0.375}, "after": {"recall@1": 0.375}},
            "hybrid": {"before": {"recall@1": 0.4}, "after": {"recall@1": 0.7}},
        },
        "evaluation": {
            "before": {"without_labels": {"answer_in_top@1": 0.3}},
            "after": {
                "n": {"recall@1": 209},
                "intervals": {"recall@1": [0.4, 0.6], "bm25/recall@1": [0.3, 0.45], "hybrid/recall@1": None},
                "without_labels": {"answer_in_top@1": 0.35},
            },
        },
        "verdict": {"kind": "better", "lines": [SAID], "held_back": ["only 9 steps"], "next": []},
        "samples": [],
    }
    return found | more


def summary_of(folder: Path, found: dict[str, Any], generated: bool = False) -> Summary:
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(found))
    return summarise(folder, generated)


def test_the_rankings_side_by_side(tmp_path):
    summary = summary_of(tmp_path, results())
    assert summary.table() == (
        ["ranking", "recall@1", "mrr@10"],
        [
            ["BM25", "0.375 (0.300 to 0.450)", ""],
            ["untrained", "0.250", "0.300"],
            ["trained", "0.500 (0.400 to 0.600)", "0.600"],
            ["untrained + BM25", "0.400", ""],
            ["trained + BM25", "0.700", ""],
        ],
    )
    assert (summary.kind, summary.questions, summary.lines) == ("better", 209, [SAID, "held back: only 9 steps"])
    assert summary.as_json()["means"]["trained"]["recall@1"] == {"mean": 0.5, "interval": [0.4, 0.6]}


def test_written_questions_are_said_to_be_so(tmp_path):
    assert "written by a language model" in summary_of(tmp_path, results(), generated=True).lines[-1]


def test_without_labels_it_is_the_answer_that_is_looked_for(tmp_path):
    summary = summary_of(tmp_path, results(before={}, after={}, lexical={}))
    assert summary.table()[1] == [["untrained", "0.300"], ["trained", "0.350"]]


def test_where_nothing_was_held_out_it_is_said(tmp_path):
    summary = summary_of(tmp_path, {"before": {}, "after": {}}, generated=True)
    assert summary.lines == ["not measured: no rows were held out"] and not summary.means


def test_the_page_has_it_all_and_escapes_it(tmp_path):
    state = State(tmp_path / "build.json", {"chunk": Entry("ds-rag chunk '<b>'", "k", "complete", 0, 61.0)})
    sifted = {"filters": [{"filter": "round_trip", "read": 321, "rejected": 123}], "kept": 198}
    (tmp_path / "questions.json").write_text(json.dumps(sifted))
    counts = {"train": {"rows": 90, "labelled": 80}, "eval": {"rows": 9, "labelled": 9}, "lost": 3}
    summary = summary_of(tmp_path / "run", results())
    file = write_page(Wanted(("docs",), tmp_path), state, summary, counts)
    page = file.read_text()
    assert file == tmp_path / "report.html" and "<b>'" not in page and "&lt;b&gt;" in page
    for text in ("0.250 -&gt; 0.500", "BM25", "0.375 (", "61 s", "passages are gone", "round_trip", "321", "198"):
        assert text in page, text
    assert 'href="run/report.html"' in page
    assert "round_trip" not in write_page(Wanted((), tmp_path, "rows.jsonl"), state, summary, counts).read_text()
