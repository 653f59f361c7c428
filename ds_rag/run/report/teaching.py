"""Two sections of a run's report: what the generator's posterior made of the retriever's prior in training, and what
`ds-rag audit` found of its models."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ds_rag.run.metrics_file import is_number
from ds_rag.run.report.parts import card, dict_of, escape, list_of, shown, table
from ds_rag.runtime import json_files

AUDIT, PICTURE = "audit.json", "audit.png"  # in the run's folder
PNG = b"\x89PNG"
TIMES = ("before", "after")  # training
FEW = 10  # steps whose mean is shown, at the beginning and at the end; of a short run half of its steps
AGREEMENT = "prior_posterior_agreement"
SAME_FIRST = "first passage by prior and posterior the same, held-out"
OF_STEPS = {  # key of a step's line -> what it is called
    "prior_entropy": "entropy of the prior, nats",
    "posterior_entropy": "entropy of the posterior, nats",
    "gated_queries": "questions of a step that taught nothing",
}


def posterior_html(metrics: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> str:
    """Prior and posterior at the beginning and at the end of training; empty where no generator read candidates.

    metrics: the lines of metrics.jsonl; results: of results.json.
    """
    rows, steps = [], 0
    for key, name in OF_STEPS.items():
        values = [line[key] for line in metrics if line.get("kind") == "train" and is_number(line.get(key))]
        if few := min(FEW, len(values) // 2):
            rows.append([name, shown(fmean(values[:few])), shown(fmean(values[-few:]))])
            steps = few
    held = [dict_of(dict_of(dict_of(results.get("evaluation")).get(when)).get("without_labels")) for when in TIMES]
    if any(AGREEMENT in figures for figures in held):
        rows.append([SAME_FIRST, *(shown(figures.get(AGREEMENT)) for figures in held)])
    if not rows:
        return ""
    gated = results.get("gated_queries")
    below = f"Of steps: means of the first and the last {steps}." if steps else ""
    if is_number(gated) and gated:
        below += f" In all, {gated:,.0f} questions taught nothing."
    return card(table(["", *TIMES], rows) + f'<p class="dim">{below}</p>')


def audit_html(run: Path) -> str:
    """Table, verdict and picture of the run's audit; empty where there is none. Raises UserError for a damaged file."""
    file = run / AUDIT
    if not file.is_file():
        return ""
    found = json_files.read_json(file, dict, "ds-rag audit --run RUN writes it again, or delete it")
    setting, verdict = dict_of(found.get("setting")), dict_of(found.get("verdict"))
    rows = []
    for name, of in dict_of(found.get("gold_first")).items():
        among, as_found = (dict_of(dict_of(of).get(key)) for key in ("gold among them", "as found"))
        ends = among.get("interval")
        between = f"{ends[0]:.3f} to {ends[1]:.3f}" if isinstance(ends, list) and all(map(is_number, ends)) else ""
        cells = [shown(among.get("mean")), between, shown(dict_of(of).get("auc")), shown(as_found.get("mean"))]
        rows.append([str(name), *cells])
    right = "labelled passages" if setting.get("labels_used") else "passages that contain the answer"
    about = ", ".join(f"{setting[key]} {key}" for key in ("rows", "documents", "candidates") if key in setting)
    said = "".join(f"<p>{escape(line)}</p>" for line in list_of(verdict.get("lines")))
    titles = ["picked by", "right first", "95 % interval", "AUC", "as found"]
    return card(table(titles, rows) + f'<p class="dim">{escape(about)}; right are {right}.</p>{said}') + picture(run)


def picture(run: Path) -> str:
    data = (run / PICTURE).read_bytes() if (run / PICTURE).is_file() else b""
    if not data.startswith(PNG):
        return ""
    source = base64.b64encode(data).decode()
    return f'<figure class="card"><img alt="audit" src="data:image/png;base64,{source}"></figure>'
