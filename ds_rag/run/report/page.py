"""A run's report: `report.html`, one file that loads nothing else.

write_report(Path("runs/quickstart"))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_rag.run import config_and_results
from ds_rag.run.metrics_file import read_metrics
from ds_rag.run.report.curves import curves_html
from ds_rag.run.report.figures import all_html, answers_html, rankings_html
from ds_rag.run.report.head import facts_html, lead_html, verdict_html
from ds_rag.run.report.parts import escape, section
from ds_rag.run.report.questions import doubts_html, questions_html, samples_html, tables_of
from ds_rag.run.report.settings import settings_html
from ds_rag.run.report.style import SCRIPT, STYLE, security_policy
from ds_rag.run.report.teaching import audit_html, posterior_html
from ds_rag.runtime import json_files
from ds_rag.runtime.errors import UserError

MADE_HERE = '<div class="dim">ds_rag training run</div>'


def write_report(run_dir: Path) -> Path:
    """Writes `run_dir/report.html` from metrics.jsonl, results.json, config.json and the tables of results per
    question, and returns its path. Sections whose file is missing are left out.

    Raises: UserError when `run_dir` is not a folder, or contains neither metrics nor results.
    """
    metrics_path, results_path = run_dir / json_files.METRICS, run_dir / json_files.RESULTS
    if not metrics_path.is_file() and not results_path.is_file():
        raise UserError("nothing to report", found=run_dir, expected="a run's folder with metrics.jsonl")
    metrics = read_metrics(metrics_path)
    results, file = config_and_results.figures(run_dir), run_dir / json_files.CONFIG
    config = json_files.read_json(file, dict, json_files.AGAIN) if file.exists() else {}
    report = run_dir / "report.html"
    report.write_text(page(run_dir, metrics, results, config), encoding="utf-8")
    return report


def page(run: Path, metrics: list[dict[str, Any]], results: dict[str, Any], config: dict[str, Any]) -> str:
    name, (before, after) = escape(run.resolve().name), tables_of(run)
    if before and after and before.signature.get("data_hash") != after.signature.get("data_hash"):
        before = None  # of other rows, which a resumed run was given
    body = [
        f"<h1>{name}</h1>\n{MADE_HERE}",
        lead_html(config, results),
        verdict_html(results),
        section("Retrieval", rankings_html(results), "retrieval"),
        section("Answers", answers_html(results), "answers"),
        section("Questions", questions_html(before, after) or samples_html(results), "questions"),
        section("Labels that the generator doubts", doubts_html(after), "doubts"),
        section("Prior and posterior", posterior_html(metrics, results)),
        section("Audit", audit_html(run)),
        section("Curves", curves_html(metrics), "curves"),
        section("All figures, before and after", all_html(results), "figures"),
        section("Cost", facts_html(metrics, results)),
        section("Settings", settings_html(config), "settings"),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{security_policy()}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: training report</title>\n<style>{STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(filter(None, body)) + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
