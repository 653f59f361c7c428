"""`ds-rag audit` on small random models: its scores against plain forwards, its files, its errors."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import TEXTS, finished_run, small_generator, small_retriever

from ds_rag.commands import cli
from ds_rag.config import build
from ds_rag.data.dataset import build_table
from ds_rag.data.formats import Passage, Row
from ds_rag.data.prompt import Prompt
from ds_rag.evaluation.audit_pool import QUESTION, AuditOptions, collect, read_questions, sample_rows
from ds_rag.evaluation.cached_reader import CachedReader
from ds_rag.index.lexical import LexicalIndex
from ds_rag.run.report.page import write_report
from ds_rag.runtime.console import Console
from ds_rag.runtime.own_files import RUN, strangers_by_name

SILENT = Console(speaks=False)
CORPUS = [*TEXTS, "the mill of zor is closed", "bob sleeps in the ninth pool"]
ROWS = [
    Row("a", "where is zor ?", ("flint",), (TEXTS[0],), (), (), "f:1"),
    Row("b", "where does kelp grow ?", ("in pool nine", "nine"), (TEXTS[2],), (), (), "f:2"),
    Row("c", "who sleeps ?", ("nobody",), ("a passage of this row alone",), (), (), "f:3"),
]


@pytest.fixture(scope="module")
def models() -> tuple[Any, CachedReader]:
    generator = small_generator(seed=3)
    prompt = Prompt(generator.tokenizer, max_length=generator.max_length)
    return small_retriever(seed=4), CachedReader(generator, prompt, build({}).data)


def by_one_forward(
    reader: CachedReader, passage: str, query: str, answer: str, prompt: Prompt, end: bool = True
) -> float:
    """One sequence through the language model itself."""
    ids = {
        name: np.array(prompt.encode(name, [text], 60)[0], np.int64)
        for name, text in (("passage", passage), ("query", query), ("answer", answer))
    }
    empty = np.zeros(0, np.int64)
    context = prompt.context(ids["passage"] if passage else empty, ids["query"], len(ids["answer"]))
    sequence = torch.from_numpy(np.concatenate([context, ids["answer"]]))
    with torch.no_grad():
        logp_TV = reader.generator.lm(input_ids=sequence[None]).logits[0].log_softmax(-1)
    return sum(float(logp_TV[t - 1, sequence[t]]) for t in range(len(context), len(sequence)))


@pytest.mark.parametrize("source", ["index", "bm25"])
def test_all_scores_against_plain_forwards(models, source):
    retriever, reader = models
    data = build_table([Passage(f"p{n}", text) for n, text in enumerate(CORPUS)], [], ROWS)
    scores, sample = collect(retriever, reader, data, range(3), AuditOptions(2, source, True, 4, "Flat"), SILENT)
    with torch.no_grad():
        vectors = {
            side: retriever.embed(retriever.tokens(texts, side), side)
            for side, texts in (("query", [r.query for r in ROWS]), ("passage", data.texts))
        }
    cosine = (vectors["query"] @ vectors["passage"].T).double().numpy()
    words = LexicalIndex(data.texts[: data.corpus_size])
    for q, row in enumerate(ROWS):
        ranking = cosine[q, : data.corpus_size] if source == "index" else words.scores(row.query)
        first = np.argsort(-ranking, kind="stable")[:2].tolist()
        right = data.texts.index(row.positives[0])
        columns = first + ([] if right in first else [right])
        assert [sample.passages[n] for n in sample.numbers_QW[q] if n >= 0] == [data.texts[n] for n in columns]
        assert scores.there_QW[q].tolist() == [True, True, right not in first]
        assert scores.gold_QW[q].tolist() == [n == right for n in (*columns, -1)][:3]
        there = scores.there_QW[q]
        np.testing.assert_allclose(scores.prior_QW[q, there], cosine[q, columns], atol=1e-5)
        wanted = [by_one_forward(reader, data.texts[n], row.query, row.answers[0], reader.prompt) for n in columns]
        np.testing.assert_allclose(scores.answer_QW[q, there], wanted, rtol=1e-4)
        alone = by_one_forward(reader, "", row.query, row.answers[0], reader.prompt)
        np.testing.assert_allclose(scores.nothing_Q[q], alone, rtol=1e-4)
        assert abs(alone - wanted[0]) > 1e-3  # a passage makes a difference
    assert scores.temperature == pytest.approx(0.3) and scores.K == 2


def test_the_likelihood_of_the_question(models):
    retriever, reader = models
    data = build_table([Passage(f"p{n}", text) for n, text in enumerate(CORPUS)], [], ROWS[:2])
    _, sample = collect(retriever, reader, data, range(2), AuditOptions(2, "bm25", True, 4, "Flat"), SILENT)
    found = read_questions(reader, sample, SILENT)
    prompt = Prompt(reader.prompt.tokenizer, "Passage: {passage}\n{query}", max_length=reader.prompt.max_length)
    for q, w in np.argwhere(sample.numbers_QW >= 0):
        passage = sample.passages[sample.numbers_QW[q, w]]
        wanted = by_one_forward(reader, passage, QUESTION, ROWS[q].query, prompt)
        assert found[q, w] == pytest.approx(wanted, rel=1e-4)


def test_without_labels_right_is_what_contains_the_answer(models):
    retriever, reader = models
    data = build_table([Passage(f"p{n}", text) for n, text in enumerate(CORPUS)], [], ROWS)
    scores, sample = collect(retriever, reader, data, range(3), AuditOptions(5, "index", False, 4, "Flat"), SILENT)
    assert not scores.there_QW[:, -1].any()  # no label has added a passage
    for q, right in enumerate([{TEXTS[0]}, {TEXTS[2]}, set()]):  # "nine" is no word of "ninth"
        found = {sample.passages[n] for n in sample.numbers_QW[q][scores.gold_QW[q]]}
        assert found == right


def test_a_sample_is_spread_over_documents():
    documents = ["big"] * 60 + ["small"] * 20 + [f"d{n}" for n in range(20)]
    found = sample_rows(documents, 20, seed=1)
    assert found == sorted(set(found)) and len(found) == 20
    names = [documents[n] for n in found]
    assert abs(names.count("big") - 12) <= 1 and abs(names.count("small") - 4) <= 1
    assert found == sample_rows(documents, 20, seed=1) != sample_rows(documents, 20, seed=2)
    assert sample_rows(documents, 100, seed=1) == list(range(100)) == sample_rows(documents, 200, seed=3)


def test_each_row_is_as_likely_as_any_other():
    documents = [None, None, "a", "a", "a", "b"]
    times = np.bincount([n for seed in range(2000) for n in sample_rows(documents, 2, seed)], minlength=6)
    assert abs(times / 2000 - 1 / 3).max() < 0.05


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp("audit"))


def test_the_command_leaves_figures_and_a_picture(run, tmp_path, capsys):
    flags = ["--run", run, "--data", run.parent / "rows.jsonl", "--corpus", run.parent / "corpus.jsonl"]
    more = ["--candidates", "2", "--question_likelihood", "--json", tmp_path / "a.json", "--plot", tmp_path / "a.png"]
    assert cli.main([str(word) for word in ["audit", *flags, *more]]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["setting"]["labels_used"] and result["setting"]["rows"] == 3
    assert {"retriever", "reader", "reader question", "reader both"} <= set(result["gold_first"])
    assert f"verdict: {result['verdict']['lines'][0][:30]}" in printed
    assert "suggested: temperature" in printed and "gold among them" in printed
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((run / "audit.json").read_text()) == result, "the run keeps it"
    assert (run / "audit.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    assert strangers_by_name(run, RUN) == []
    assert "report" not in printed and not (run / "report.html").exists(), "a run without one gets none"
    page = write_report(run)
    before = page.read_text()
    row = before[before.index("<td>reader</td>") :].split("</tr>")[0]
    assert f"{result['gold_first']['reader']['gold among them']['mean']:.3f}" in row
    assert escape(result["verdict"]["lines"][0]) in before and "right are labelled passages" in before
    assert base64.b64encode((run / "audit.png").read_bytes()).decode() in before
    words = ["audit", *flags, "--ignore_labels", "--json", tmp_path / "a.json"]  # its own file may be replaced
    assert cli.main([str(word) for word in words]) == 0
    result = json.loads((tmp_path / "a.json").read_text())
    assert not result["setting"]["labels_used"] and any("weaker" in line for line in result["verdict"]["lines"])
    assert "right are passages that contain the answer" in page.read_text() != before, "the report follows"
    (run / "audit.json").write_text('{"mine": 1}')
    assert cli.main([str(word) for word in words]) == 0
    assert "was not added" in capsys.readouterr().out and json.loads((run / "audit.json").read_text()) == {"mine": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no rows to audit"),
        (["--data", "rows.jsonl", "--retriever", "bm25"], "nothing that could be taught"),
        (["--data", "rows.jsonl", "--candidates", "1"], "--candidates"),
        (["--data", "rows.jsonl", "--candidates_from", "batch"], "candidates_from"),
    ],
)
def test_mistakes(words, message, capsys):
    assert cli.main(["audit", *words]) == 2
    assert message in capsys.readouterr().err


def test_rows_without_answers(run, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"query": "where ?", "positive": TEXTS[0]}) + "\n")
    assert cli.main(["audit", "--run", str(run), "--data", str(tmp_path / "rows.jsonl")]) == 2
    assert "no row has an answer" in capsys.readouterr().err
