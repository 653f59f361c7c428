"""Row 33: HTML, Markdown and terminal codes in rows and prompts are text, wherever a run shows them."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
from commands import TRAIN, call, execute, results

from ds_rag.config import build
from ds_rag.run.model_cards import card, code
from ds_rag.run.report.page import write_report
from ds_rag.run.report.parts import escape
from ds_rag.run.report.style import SCRIPT as OWN_SCRIPT
from ds_rag.runtime.credentials import one_line, printable

SCRIPT = "<script>alert(1)</script>"
CODES = "\x1b[31mred\x1b[0m\x07\x9b2J"
MARKUP = "[bold red]big[/] **x** | `y` <img src=x onerror=alert(2)>"
NASTY = f"{SCRIPT} {CODES} {MARKUP}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, what was printed) of a run over rows of which every text is nasty."""
    folder = tmp_path_factory.mktemp("nasty")
    rows = [
        {"query": f"q{n} {NASTY}", "answer": f"a{n} {NASTY}", "positive": f"p{n} {NASTY}", "id": f"<b>{n}</b>\x1b[1m"}
        for n in range(12)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--train_data", folder / "rows.jsonl", "--eval_data", folder / "rows.jsonl"]
    flags += ["--max_steps", "2", "--per_device_train_batch_size", "4", "--save_steps", "0", "--refresh_index", "0"]
    flags += ["--query_prefix", f"{SCRIPT}```", "--passage_prefix", CODES, "--max_new_tokens", "8"]
    done = execute([*TRAIN, "--output_dir", folder / "run", *flags])
    return folder / "run", done.stdout + done.stderr


def assert_clean_terminal(printed: str) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", printed)


def test_row_33_the_terminal_shows_codes_as_text(run):
    folder, printed = run
    assert_clean_terminal(printed)
    assert "question   q0 <script>alert(1)</script> �[31mred" in printed and "[bold red]big[/]" in printed
    assert results(folder)["samples"][0]["query"] == f"q0 {NASTY}", "the figures keep the text as it is"


def test_row_33_the_report_holds_no_markup_and_no_codes_of_a_row(run):
    page = (run[0] / "report.html").read_text()
    assert page.replace(f"<script>{OWN_SCRIPT}</script>", "").count("<script") == 0 and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "&lt;img src=x" in page
    assert_clean_terminal(page)


def test_row_33_model_cards_hold_prompts_as_code(run):
    """In a code span nothing is markup; the fence is longer than any that the text brings."""
    text = (run[0] / "retriever/README.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("- query prefix"))
    assert line == f"- query prefix: ```` '{SCRIPT}```' ````"
    assert_clean_terminal(text)


def test_row_33_ask_shows_codes_as_text(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    printed = call(["ask", copy, f"q1 {NASTY}", "--json", tmp_path / "a.json"]).stdout
    assert_clean_terminal(printed)
    assert "<script>" in printed or "scri" in printed  # a table may break the line
    raw = (tmp_path / "a.json").read_text()
    assert_clean_terminal(raw)
    assert NASTY in json.loads(raw)["passages"][0]["text"]


def test_row_33_files_that_people_look_at_hold_no_codes(run):
    for file in ("run.log", "metrics.jsonl", "results.json", "config.json", "index/texts.jsonl", "index/ids.json"):
        assert_clean_terminal((run[0] / file).read_text())


ACTING = [chr(n) for n in range(0x110000) if unicodedata.category(chr(n)) in ("Cf", "Zl", "Zp", "Cs")]


def test_row_33_no_character_that_turns_or_hides_text_is_shown_as_it_is():
    """Bidirectional overrides and isolates (U+202E, U+2066), invisible ones (U+200B, U+E0041), line separators: all."""
    assert {"\u202e", "\u2066", "\u2028", "\u200f", "\ufeff", "\U000e0041", "\ud800"} <= set(ACTING)
    text = "".join(ACTING)
    shown = [printable(text), escape(text), code(text).strip("`"), one_line(text)]
    assert all(set(each) == {"�"} for each in shown)
    about = {"query prefix": f"a{text}b"}
    page = card("retriever", build({"train_data": f"a{text}b"}), 1, {}, about)
    assert not set(page) & set(ACTING)


def test_row_33_spaces_and_letters_of_every_script_stay():
    text = "Ünï 漢字　全角 שלום‏".replace("\u200f", "") + " a\u00a0b 😀 e\u0301"
    assert printable(text) == text and escape(text) == text


def test_row_33_a_report_of_a_run_over_such_rows(tmp_path):
    sample = {"query": "who\u202e?", "gold": ["\u2066x"], "answer": "a\u2028b", "passage": "p\ud800\u200b"}
    after = {"recall@1\u202e": 1.0}
    (tmp_path / "results.json").write_text(json.dumps({"after": after, "samples": [sample], "steps": 1}))
    (tmp_path / "config.json").write_text(json.dumps({"query_prefix": "x\u202ey"}))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert not set(page) & set(ACTING) and "who�?" in page and "x�y" in page


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("a", "`a`"), ("a`b", "`` a`b ``"), ("a``b", "``` a``b ```"), ("\x1b[1m", "`�[1m`"), ("a\nb", "`a b`")],
)
def test_row_33_code_spans(text, wanted):
    assert code(text) == wanted


def test_row_33_paths_in_a_card_are_code_too():
    config = build({"train_data": "<script>`x`", "generator": SCRIPT})
    text = card("generator", config, 1, {}, {})
    assert "`` <script>`x` ``" in text and f"folder `{Path(SCRIPT).name}`;" in text


def test_row_33_what_is_replaced():
    """In a page tabs are harmless; in a table of the terminal they are not."""
    assert printable("a\tb\nc") == "a�b\nc" and escape("a\tb\nc\x1b<") == "a\tb\nc�&lt;"
