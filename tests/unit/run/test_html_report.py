"""The report: complete, self-contained, harmless whatever the texts hold."""

from __future__ import annotations

import base64
import json
import random
import re
import subprocess
import sys

import pytest

from ds_rag.run.html_report import PANELS, _smooth, curves, plot_curves, read_metrics, write_report
from ds_rag.run.lexical_table import lexical_table
from ds_rag.run.teaching_html import audit_html, posterior_html
from ds_rag.runtime.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n"
EVIL = '<script>alert("x")</script>'


def write_run(folder, *, metrics=True, results=True, config=True, seed=0):
    random.seed(seed)
    folder.mkdir(exist_ok=True)
    lines = []
    for step in range(1, 81):
        line = {"kind": "train", "step": step, "loss": 3 / step + random.random(), "skipped": int(step == 9)}
        line |= {name: random.random() for name in ("prior_entropy", "posterior_entropy", "grad_norm", "lr")}
        line |= {
            "embedding_spread": random.random(),
            "grad_share/marginal": 0.7,
            "grad_share/contrastive": 0.3,
        }
        line |= {"tokens_per_s": 1200.0, "queries_per_s": 31.5, "memory_gb": step / 100}
        lines.append(line)
        if step % 20 == 0:
            names = ("recall@1", "recall@5", "mrr@10", "ndcg@10", "exact_match", "f1", "rougeL")
            lines.append({"kind": "eval", "step": step} | {name: random.random() for name in names})
    if metrics:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if results:
        sample = {"query": f"who {EVIL}?", "gold": ["blue & red", EVIL], "answer": "x < y", "passage": EVIL}
        sample["retrieved_gold"] = False
        after = {"recall@1": 0.9, EVIL: 0.5, "only_after": 1.0}
        value = {"before": {"recall@1": 0.25, EVIL: 0.125}, "after": after, "samples": [sample]}
        (folder / "results.json").write_text(json.dumps(value | {"seconds": 83.2, "steps": 80}))
    if config:
        value = {"retriever": {"model": EVIL, "nested": {"pooling": "mean"}}, "seed": 17}
        (folder / "config.json").write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("other", [True, False])
def test_figures_have_their_interval_and_other_rows_are_said(tmp_path, other):
    run = write_run(tmp_path)
    signatures = [{"line": f"rows {EVIL}{n}", "data_hash": str(n * other), "corpus_hash": "c"} for n in (0, 1)]
    about = {"n": {"recall@1": 81, "answer_in_top@1": 80}, "intervals": {"recall@1": [0.2, 0.875], "f1": None}}
    both = [about | {"signature": signature, "without_labels": {"answer_in_top@1": 0.5}} for signature in signatures]
    values = json.loads((run / "results.json").read_text())
    values["evaluation"] = dict(zip(("before", "after"), both, strict=True))
    (run / "results.json").write_text(json.dumps(values))
    page = write_report(run).read_text(encoding="utf-8")
    row = page[page.index("<td>recall@1</td>") :].split("</tr>")[0]
    assert re.findall(r">([^<>]+)</td>", row) == ["recall@1", "0.250", "0.900", "+0.650", "0.200 to 0.875", "81"]
    assert "<td>answer_in_top@1</td>" in page and page.count("rows ") == 2 and EVIL not in page
    assert ("before and after are not comparable: other data" in page) == other


def test_the_report_is_complete(tmp_path):
    path = write_report(write_run(tmp_path / "quick & dirty"))
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "quick & dirty" / "report.html"
    assert "<h1>quick &amp; dirty</h1>" in page
    row = page[page.index("<td>recall@1</td>") :].split("</tr>")[0]
    assert re.findall(r">([-+0-9.]+)<", row) == ["0.250", "0.900", "+0.650"]
    assert "<td>only_after</td><td class=number>&ndash;</td><td class=number>1.000</td>" in page
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == len(PANELS) and len(set(pictures)) == len(PANELS)
    assert all(base64.b64decode(picture).startswith(PNG) for picture in pictures)
    assert "retriever.nested.pooling" in page and "&quot;mean&quot;" in page
    for fact in (
        "<b>80</b>",
        "<b>83 s</b>",
        "<b>1,200</b>",
        "<b>31.5</b>",
        "<b>0.80 GB</b>",
        "skipped steps",
    ):
        assert fact in page
    assert "another passage" in page and "✓ gold" not in page


def test_texts_are_escaped_and_nothing_is_loaded_from_elsewhere(tmp_path):
    page = write_report(write_run(tmp_path / "run")).read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 5  # query, expected, passage, metric name, configuration
    assert "blue &amp; red" in page and "x &lt; y" in page
    assert "//" not in re.sub(r"base64,[^\"]+", "", page)  # neither http:// nor //host
    assert not re.findall(r"@import|url\(|<link|<iframe", page)


@pytest.mark.parametrize("missing", ["metrics", "results", "config"])
def test_a_missing_file_leaves_out_its_section(tmp_path, missing):
    page = write_report(write_run(tmp_path / "run", **{missing: False})).read_text(encoding="utf-8")
    gone = {"metrics": ["Curves"], "results": ["Before and after", "Samples"], "config": ["Configuration"]}
    for name, titles in gone.items():
        for title in titles:
            assert (f"<h2>{title}</h2>" in page) == (name != missing), title


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nothing to report"):
        write_report(tmp_path)


def test_sparse_metrics_and_odd_values_are_tolerated(tmp_path):
    text = (
        '{"kind": "train", "step": 1, "loss": NaN}\n'
        '{"kind": "train", "step": 2, "loss": 2.5, "prior_entropy": null}\n'
        '{"kind": "train", "step": 3, "loss": 2.0}\n{"kind": "eval", "step": 3, "f1": 0.5}\n'
        '{"kind": "train", "step": 2, "loss": 1.5}\n[1]\n\n{"kind": "tra'
    )
    (tmp_path / "metrics.jsonl").write_text(text)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert curves(metrics, "train", ("loss",)) == {"loss": ([2, 3], [1.5, 2.0])}  # the later line of step 2
    assert curves(metrics, "train", ("prior_entropy",)) == {}
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert page.count("<figure") == 2 and "Samples" not in page


def test_plot_curves_writes_a_png_that_follows_its_metrics(tmp_path):
    one, two = (write_run(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two")))
    for run in (one, two):
        plot_curves(run / "metrics.jsonl", run / "pictures" / "curves.png")
    first, second = ((run / "pictures" / "curves.png").read_bytes() for run in (one, two))
    assert first.startswith(PNG) and second.startswith(PNG) and first != second
    exact = curves(read_metrics(one / "metrics.jsonl"), "eval", ("recall@1", "exact_match"), exact=True)
    assert list(exact) == ["recall@1", "exact_match"]
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="no curves"):
        plot_curves(tmp_path / "empty.jsonl", tmp_path / "none.png")


def test_smoothing_keeps_a_straight_line_and_calms_noise():
    line = [0.5 * i for i in range(200)]
    assert _smooth(line)[4:-4] == pytest.approx(line[4:-4])
    noise = [random.Random(i).random() for i in range(200)]
    assert max(_smooth(noise)[4:-4]) - min(_smooth(noise)[4:-4]) < 0.8 * (max(noise) - min(noise))
    assert _smooth(noise)[100] == pytest.approx(sum(noise[96:105]) / 9)


def test_importing_the_module_does_not_import_matplotlib():
    code = "import sys, ds_rag.run.html_report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_prior_and_posterior_at_the_beginning_and_at_the_end(tmp_path):
    entropies = [{"prior_entropy": 2.0, "posterior_entropy": 1.5 - n / 100, "gated_queries": n % 2} for n in range(40)]
    lines = [{"kind": "train", "step": n} | figures for n, figures in enumerate(entropies)]
    held = {
        when: {"without_labels": {"prior_posterior_agreement": v}} for when, v in (("before", 0.25), ("after", 0.75))
    }
    page = posterior_html([*lines, {"kind": "eval", "prior_entropy": 9.0}], {"evaluation": held, "gated_queries": 20})
    rows = [re.findall(r">([^<>]+)</td>", row) for row in page.split("<tr>")[2:]]
    assert rows == [
        ["entropy of the prior, nats", "2.000", "2.000"],
        ["entropy of the posterior, nats", "1.455", "1.155"],  # means of steps 0 to 9 and 30 to 39
        ["questions of a step that taught nothing", "0.500", "0.500"],
        ["first passage by prior and posterior the same, held-out", "0.250", "0.750"],
    ]
    assert "In all, 20 questions taught nothing." in page
    assert posterior_html([{"kind": "train", "step": 1, "loss": 1.0}], {"gated_queries": 0}) == ""
    assert "In all" not in posterior_html(lines, {}) and audit_html(tmp_path) == ""
    assert "Prior and posterior" in write_report(write_run(tmp_path / "run")).read_text()


def test_an_audit_of_odd_values_is_harmless(tmp_path):
    odd = {"gold_first": {EVIL: {"gold among them": {"mean": None}}, "reader": 3}, "verdict": {"lines": [EVIL]}}
    (tmp_path / "audit.json").write_text(json.dumps(odd))
    (tmp_path / "audit.png").write_bytes(b"no picture")
    page = audit_html(tmp_path)
    assert EVIL not in page and page.count("&lt;script&gt;") == 2 and "<img" not in page
    (tmp_path / "audit.json").write_text("{")
    with pytest.raises(UserError, match=r"audit\.json"):
        audit_html(tmp_path)


def test_rankings_beside_a_search_by_words(tmp_path):
    retriever, words, both = ({"recall@1": v, "recall@10": v, "mrr@10": v} for v in (0.25, 0.375, 0.5))
    lexical = {"bm25": {"before": words, "after": words}, "hybrid": {"before": {}, "after": both}}
    results = {"before": retriever, "after": retriever | {"recall@1": 0.3}, "lexical": lexical, "steps": 2}
    assert lexical_table(results) == [
        ["BM25", "0.375", "0.375", "0.375"],
        ["retriever before", "0.250", "0.250", "0.250"],
        ["retriever before + BM25", "-", "-", "-"],  # a run resumed from before there were these lines
        ["retriever after", "0.300", "0.250", "0.250"],
        ["retriever after + BM25", "0.500", "0.500", "0.500"],
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = write_report(tmp_path).read_text()
    assert "Beside a search by words" in page and "<td>retriever after + BM25</td><td class=number>0.500</td>" in page
    (tmp_path / "results.json").write_text(json.dumps(results | {"lexical": {}}))
    assert lexical_table({"after": retriever}) == [] and "by words" not in write_report(tmp_path).read_text()
