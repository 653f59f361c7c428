"""The report: complete, self-contained, harmless whatever the texts hold."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import subprocess
import sys

import pytest
from browser import CHROMIUM, QUIET

from ds_rag.evaluation.per_question import PerQuestion, write_per_question
from ds_rag.run.lexical_table import lexical_table
from ds_rag.run.metrics_file import read_metrics
from ds_rag.run.report.curves import PANELS, _smooth, curves, joined, plot_curves
from ds_rag.run.report.page import write_report
from ds_rag.run.report.teaching import audit_html, posterior_html
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
            names = ("recall@1", "recall@5", "mrr@10", "ndcg@10", "answer_in_top@1", "exact_match", "f1", "rougeL")
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


QUESTIONS = {  # id -> rank of the labelled passage before and after
    "fixed": (3, 1),
    "broken": (1, 2),
    "wrong": (2, None),
    "right": (1, 1),
}


def write_questions(folder, times=1):
    """The two tables of results per question: QUESTIONS, `times` each."""
    names = [f"{name}-{n}" for n in range(times) for name in QUESTIONS]
    for place, when in enumerate(("before", "after")):
        ranks = [QUESTIONS[name.split("-")[0]][place] for name in names]
        passages = [[f"noise {EVIL}", "the answer is blue & red, says noise", "more noise"] for _ in names]
        details = {
            "query": [f"who is {name} {EVIL}?" for name in names],
            "answers": [["Blue, red"] for _ in names],
            "gold": [[f"p{rank or 9}"] for rank in ranks],
            "gold_rank": ranks,
            "answer_in": [[False, True, False] for _ in names],
            "passages": passages,
            "sources": [["a.md, page 3", "", "c.md"] for _ in names],
            "gold_text": ["the labelled text" for _ in names],
            "answer": [f"{when} {EVIL}" for _ in names],
            "prior": [[0.5, 0.3, 0.2] for _ in names],
            "posterior": [[0.1, 0.85, 0.05] for _ in names],
        }
        found = [[f"p{n}" for n in (1, 2, 3)] for _ in names]
        table = PerQuestion(names, [None] * len(names), {}, found, [[3.0, 2.0, 1.0] for _ in names], details)
        write_per_question(table, folder / when)
    return folder


def test_questions_are_sorted_by_what_training_changed(tmp_path):
    page = write_report(write_questions(write_run(tmp_path))).read_text(encoding="utf-8")
    states = re.findall(r'data-state="(\w+)"><summary>.*?who is (\w+)-0 .*?rank ([^<]+)</span>', page)
    expected = [("fixed", "3 → 1"), ("broken", "1 → 2"), ("wrong", "2 → not found"), ("right", "1 → 1")]
    assert states == [(state, state, ranks) for state, ranks in expected]
    first = page[page.index('data-state="fixed"><summary>') :].split("</details>")[0]
    assert "the answer is <mark>blue &amp; red</mark>, says noise" in first, (
        "another mark between the words is no matter"
    )
    assert "a.md, page 3" in first and "before &lt;script" in first and "after &lt;script" in first
    assert 'prior <meter min="0" max="1" value="0.500">' in first
    assert 'posterior <meter min="0" max="1" value="0.850">' in first
    assert "✓ labelled" in first and "the labelled text" not in first
    assert "the labelled text" in page[page.index('data-state="broken"><summary>') :].split("</details>")[0]


def test_thirty_questions_of_all_kinds(tmp_path):
    page = write_report(write_questions(write_run(tmp_path), times=50)).read_text(encoding="utf-8")
    states = re.findall(r'data-state="(\w+)"><summary>', page)
    assert len(states) == 30 and {states.count(state) for state in QUESTIONS} == {7, 8}
    assert "Of 200 questions: 50 wrong before, right after, 50 right before" in page


def test_labels_that_the_generator_doubts(tmp_path):
    """Told the answer, it prefers p2, which contains it: a doubt where p1 is the label, none where p2 is."""
    run = write_questions(write_run(tmp_path))
    doubted = write_report(run).read_text(encoding="utf-8").split("<h2>Labels that the generator doubts</h2>")[1]
    doubted = doubted.split("</section>")[0]
    assert "3 questions" in doubted and "who is broken" not in doubted and "who is fixed" in doubted
    (run / "after.questions.parquet").unlink()
    assert "doubts" not in write_report(run).read_text(encoding="utf-8")


def test_what_was_trained_on_what(tmp_path):
    run = write_run(tmp_path)
    models = {
        "retriever": {"parameters": 22_700_000, "trained": True},
        "generator": {"parameters": 1e8, "trained": False},
    }
    about = {"finished": "2026-01-02 03:04 UTC", "rows": 877, "passages": 2861, "held_out": 164, "models": models}
    values = json.loads((run / "results.json").read_text()) | {"about": about | {"device": "cpu", "ranks": 2}}
    verdict = {"kind": "worse", "lines": [f"worse {EVIL}"], "held_back": ["few rows"], "next": [["ds-rag ask", "why"]]}
    (run / "results.json").write_text(json.dumps(values | {"verdict": verdict, "ds_rag": "0.1.0"}))
    config = {"retriever": "enc", "generator": "lm", "train_data": "rows.jsonl", "corpus": None, "objective": "pdist"}
    (run / "config.json").write_text(json.dumps(config | {"warmup_steps": 7, "seed": 0}))
    page = write_report(run).read_text(encoding="utf-8")
    for said in (
        "<b>pdist</b>: retriever <code>enc</code> (22.7M parameters, trained) and generator <code>lm</code> (100.0M "
        "parameters, frozen)",
        "877 rows of <code>rows.jsonl</code>, 2,861 passages of the rows, 164 held-out questions",
        "Finished 2026-01-02 03:04 UTC, ds_rag 0.1.0, 2 x cpu",
        '<div class="card verdict worse"',
        "<li>few rows</li>",
        "<code>ds-rag ask</code> why",
    ):
        assert said in page, said
    settings = page[page.index("<h2>Settings</h2>") :]
    changed, left = settings.split("<details")
    assert "warmup_steps" in changed and "seed" not in changed and "seed" in left


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
    assert "<td>only_after</td><td class=number>–</td><td class=number>1.000</td>" in page
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


def test_texts_are_escaped_and_nothing_is_loaded_from_elsewhere(tmp_path):
    page = write_report(write_questions(write_run(tmp_path / "run"))).read_text(encoding="utf-8")
    assert page.count("<script") == 1 and page.count("</script") == 1, "its own"
    script = page[page.index("<script>") + 8 : page.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert page.count("&lt;script&gt;") > 5 and "blue &amp; red" in page
    assert "//" not in re.sub(r"base64,[^\"]+|sha256-[^']+", "", page)  # neither http:// nor //host
    assert not re.findall(r"@import|url\(|<link|<iframe", page)


@pytest.mark.parametrize("missing", ["metrics", "results", "config"])
def test_a_missing_file_leaves_out_its_section(tmp_path, missing):
    page = write_report(write_run(tmp_path / "run", **{missing: False})).read_text(encoding="utf-8")
    gone = {"metrics": ["Curves"], "results": ["All figures, before and after"], "config": ["Settings"]}
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
    assert page.count("<figure") == 2 and "Questions" not in page


def test_equal_curves_are_one_line_under_all_their_names():
    rising, level = ([0.0, 1.0], [0.1, 0.2]), ([0.0, 1.0], [0.2, 0.2])
    drawn = joined({"recall@1": rising, "recall@5": level, "mrr@10": rising})
    assert drawn == {"recall@1 = mrr@10": rising, "recall@5": level}


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
    code = "import sys, ds_rag.run.report.page; sys.exit('matplotlib' in sys.modules)"
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
    ends = {"hybrid/recall@1": [0.4, 0.6], "recall@1": [0.2, 0.4]}
    beside = lexical_table(results | {"evaluation": {"after": {"intervals": ends}}}, with_intervals=True)
    assert [row[1] for row in beside] == ["0.375", "0.250", "-", "0.300 (0.200–0.400)", "0.500 (0.400–0.600)"]
    contained = {f"answer_in_top@{k}": k / 10 for k in (1, 5, 10)}
    bare = {"evaluation": {"before": {}, "after": {"without_labels": contained}}, "lexical": {"bm25": {"after": {}}}}
    assert lexical_table({"before": {}, "after": {}} | bare)[-1] == ["retriever after", "0.100", "0.500", "1.000"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = write_report(tmp_path).read_text()
    assert "<h2>Retrieval</h2>" in page and "<td>retriever after + BM25</td><td class=number>0.500</td>" in page
    (tmp_path / "results.json").write_text(json.dumps(results | {"lexical": {}}))
    assert lexical_table({"after": retriever}) == [] and "<h2>Retrieval" not in write_report(tmp_path).read_text()


def browse(page, profile, *flags):
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", *flags, page]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_it_filters_and_prints(tmp_path):
    """Its own script runs in spite of the policy, which lets nothing else run; `#wrong` chooses a filter."""
    run = tmp_path / "run"
    page = write_report(write_questions(write_run(run), times=3)).as_uri()
    dom = browse(f"{page}#wrong", tmp_path / "profile", "--dump-dom")
    shown = re.findall(r'<details class="card question" data-state="(\w+)"( hidden="")?>', dom)
    assert len(shown) == 12 and all(bool(hidden) == (state != "wrong") for state, hidden in shown)
    assert re.search(r'<button [^>]*data-state="wrong"[^>]*aria-pressed="true"', dom) and ">3 shown<" in dom
    for part in ('id="questions"', 'id="curves"', 'id="figures"', 'id="settings"', "<h1>run</h1>"):
        assert part in dom
    pdf = tmp_path / "report.pdf"
    browse(page, tmp_path / "profile", f"--print-to-pdf={pdf}")
    assert pdf.read_bytes().startswith(b"%PDF")
