"""Draws a run's report: `report.html` (one file that loads nothing else) and the README's curves.

write_report(Path("runs/quickstart"))
plot_curves(Path("runs/quickstart/metrics.jsonl"), Path("docs/curves.png"))
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterator
from itertools import accumulate, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ds_rag.evaluation.intervals import show_interval
from ds_rag.evaluation.signature import unlike
from ds_rag.run import config_and_results
from ds_rag.run.lexical_table import lexical_html
from ds_rag.run.teaching_html import audit_html, posterior_html
from ds_rag.runtime import json_files
from ds_rag.runtime.credentials import printable
from ds_rag.runtime.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MADE_HERE = '<div class="dim">ds_rag training run</div>'
Curve = tuple[list[float], list[float]]  # steps, values

# title -> (kind of line, beginnings of the keys to draw)
PANELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Loss": ("train", ("loss",)),
    "Retrieval, held-out questions": ("eval", ("recall@", "mrr@", "ndcg@")),
    "Answers, held-out questions": ("eval", ("exact_match", "f1", "rougeL")),
    "Entropy over the passages (nats)": ("train", ("prior_entropy", "posterior_entropy")),
    "Embedding spread": ("train", ("embedding_spread",)),
    "Gradient norm": ("train", ("grad_norm",)),
    "Fraction of the score gradient": ("train", ("grad_share/",)),
}
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#eab308")
GREY = "#808690"  # legible on a light and on a dark page

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2430; --dim: #667080;
        --line: #e2e6ec; --good: #0f8a5f; --bad: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12151a; --card: #1b2028; --text: #e6e9ee; --dim: #97a1b0; --line: #2c333e;
          --good: #34d399; --bad: #fb923c; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { margin: 0; font-size: 28px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { margin: 44px 0 14px; font-size: 19px; }
.dim { color: var(--dim); } .good { color: var(--good); } .bad { color: var(--bad); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 20px; }
.facts { display: flex; flex-wrap: wrap; gap: 8px 32px; margin-top: 18px; }
.facts b { display: block; font-size: 20px; font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); gap: 16px; }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: 6px; }
img { width: 100%; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 7px 9px 7px 0; border-bottom: 1px solid var(--line) }
tr:last-child td { border-bottom: 0; } th { color: var(--dim); font-weight: 500; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.code { font: 13px/1.6 ui-monospace, monospace; overflow-wrap: anywhere; }
.sample { margin-bottom: 14px; } .sample p { margin: 6px 0 0; overflow-wrap: anywhere; }
.sample .question { margin: 0; font-weight: 600; }
summary { cursor: pointer; } .label { display: inline-block; min-width: 84px; color: var(--dim); }
"""


def escape(text: str) -> str:
    """`text` escaped for HTML, without credentials and control characters: some of these reverse the direction of text,
    and a report may be viewed in a terminal."""
    return html.escape(printable(text, keep="\n\t"))


def write_report(run_dir: Path) -> Path:
    """Writes `run_dir/report.html` from metrics.jsonl, results.json and config.json, and returns its path. Sections
    whose file is missing are left out.

    Raises: UserError when `run_dir` is not a folder, or contains neither metrics nor results.
    """
    metrics_path, results_path = run_dir / json_files.METRICS, run_dir / json_files.RESULTS
    if not metrics_path.is_file() and not results_path.is_file():
        raise UserError("nothing to report", found=run_dir, expected="a run's folder with metrics.jsonl")
    metrics = read_metrics(metrics_path)
    results, file = config_and_results.figures(run_dir), run_dir / json_files.CONFIG
    config = json_files.read_json(file, dict, json_files.AGAIN) if file.exists() else {}
    name = escape(run_dir.resolve().name)
    body = [
        f"<h1>{name}</h1>\n{MADE_HERE}",
        _facts(metrics, results),
        _section("Before and after", _before_after(results)),
        _section("Beside a search by words (BM25)", lexical_html(results)),
        _section("Prior and posterior", posterior_html(metrics, results)),
        _section("Audit", audit_html(run_dir)),
        _section("Curves", _curves(metrics)),
        _section("Samples", "".join(_sample(sample) for sample in results.get("samples") or ())),
        _section("Configuration", _configuration(config)),
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: training report</title>\n<style>{STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )
    report = run_dir / "report.html"
    report.write_text(page, encoding="utf-8")
    return report


def plot_curves(metrics_path: Path, out_png: Path) -> None:
    """Draws one compact picture: the loss, and recall@1 with exact match on held-out questions.

    Raises: UserError when `metrics_path` contains neither a loss nor an evaluation.
    """
    metrics = read_metrics(metrics_path)
    panels = {
        "training loss": curves(metrics, "train", ("loss",)),
        "held-out questions": curves(metrics, "eval", ("recall@1", "exact_match"), exact=True),
    }
    if not any(panels.values()):
        raise UserError("no curves to draw", found=metrics_path, expected="a run's metrics.jsonl with losses")
    figure = _figure(8.4, 2.7)
    for axes, (title, lines) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        axes.set_title(title, fontsize=10, color=GREY)
        _draw(axes, lines)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    out_png.write_bytes(_png(figure, background="white"))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; empty if there is no file. Lines that cannot be read (cut off by a crash, say) are
    skipped. Raises UserError if no line can be read."""
    lines, every = [], path.read_bytes().splitlines() if path.is_file() else []
    for text in every:
        try:
            line = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and _number(line.get("step")) is not None:
            lines.append(line)
    if every and not lines:
        raise UserError(f"{path}: damaged", found=f"{len(every)} lines, and no JSON object with a step among them")
    return lines


def curves(metrics: list[dict[str, Any]], kind: str, keys: tuple[str, ...], *, exact: bool = False) -> dict[str, Curve]:
    """Metric -> (steps, finite values), for each metric whose name begins with (`exact`: is) one of `keys`.

    A step that was written twice, as after resuming, counts once: the later line is used.
    """
    found: dict[str, dict[float, float]] = {}
    for line in metrics:
        for name, value in line.items() if line.get("kind") == kind else ():
            number = _number(value)
            if number is not None and (name in keys if exact else name.startswith(keys)):
                found.setdefault(name, {})[line["step"]] = number
    order = sorted(found, key=lambda name: next(i for i, key in enumerate(keys) if name.startswith(key)))
    return {name: (sorted(found[name]), [found[name][step] for step in sorted(found[name])]) for name in order}


def _number(value: object) -> float | None:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if numeric else None  # type: ignore[arg-type]


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def _facts(metrics: list[dict[str, Any]], results: dict[str, Any]) -> str:
    train = [line for line in metrics if line.get("kind") == "train"]

    def values(key: str) -> list[float]:
        return sorted(n for line in train if (n := _number(line.get(key))) is not None)

    facts: dict[str, str] = {}
    steps = _number(results.get("steps")) or max((line["step"] for line in train), default=0)
    facts["steps"] = f"{steps:,.0f}"
    if (seconds := _number(results.get("seconds"))) is not None:
        facts["time"] = f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.1f} min"
    for key, label in (("tokens_per_s", "tokens / s (median)"), ("queries_per_s", "questions / s (median)")):
        if found := values(key):
            middle = found[len(found) // 2]
            facts[label] = f"{middle:,.0f}" if middle >= 100 else f"{middle:.3g}"
    if found := values("memory_gb"):
        facts["peak memory"] = f"{found[-1]:.2f} GB"
    if (waited := _number(results.get("refresh_stall_fraction"))) is not None:
        facts["waiting for the index"] = f"{waited:.1%}"
    if skipped := sum(values("skipped")):
        facts["skipped steps"] = f"{skipped:,.0f}"
    cells = "".join(f'<div><b>{value}</b><span class="dim">{key}</span></div>' for key, value in facts.items())
    return f'<div class="card facts">{cells}</div>'


def _before_after(results: dict[str, Any]) -> str:
    """Every figure with its interval and number of questions, those that need no labels last, and the signatures."""
    known = results.get("evaluation") or {}
    about = [known.get(when) or {} for when in ("before", "after")]
    before, after = (
        {**(results.get(when) or {}), **(facts.get("without_labels") or {})}
        for when, facts in zip(("before", "after"), about, strict=True)
    )
    names = list(dict.fromkeys([*before, *after]))
    if not names:
        return ""
    rows = []
    for name in names:
        old, new = _number(before.get(name)), _number(after.get(name))
        change = "" if old is None or new is None else f"{new - old:+.3f}"
        cells = [f"{value:.3f}" if value is not None else "&ndash;" for value in (old, new)] + [change]
        ends, count = (about[1].get("intervals") or {}).get(name), (about[1].get("n") or {}).get(name)
        cells += [show_interval(ends) if ends else "", "" if count is None else escape(str(count))]
        numbers = "".join(f"<td class=number>{cell}</td>" for cell in cells)
        rows.append(f"<tr><td>{escape(name)}</td>{numbers}</tr>")
    titles = ("before", "after", "change", "95 % interval of after", "n")
    head = "".join(f"<th class=number>{title}</th>" for title in titles)
    warning = unlike(known)
    below = f'<p class="bad">{escape(warning)}</p>' if warning else ""
    for when, facts in zip(("before", "after"), about, strict=True):
        if line := (facts.get("signature") or {}).get("line"):
            below += f'<p class="dim">{when}: {escape(str(line))}</p>'
    return f'<div class="card scroll"><table><tr><th>metric</th>{head}</tr>{"".join(rows)}</table>{below}</div>'


def _curves(metrics: list[dict[str, Any]]) -> str:
    pictures = []
    for title, (kind, keys) in PANELS.items():
        lines = curves(metrics, kind, keys)
        if lines:
            figure = _figure(5.6, 2.9, layout=None)  # fixed margins: a constrained layout would draw each figure twice
            _draw(figure.subplots(gridspec_kw={"left": 0.12, "right": 0.98, "bottom": 0.18, "top": 0.96}), lines)
            data = base64.b64encode(_png(figure)).decode()
            pictures.append(
                f'<figure class="card"><figcaption>{escape(title)}</figcaption>'
                f'<img alt="{escape(title)} over training steps" src="data:image/png;base64,{data}"></figure>'
            )
    return f'<div class="grid">{"".join(pictures)}</div>' if pictures else ""


def _sample(sample: dict[str, Any]) -> str:
    gold = sample.get("gold") or []
    gold = gold if isinstance(gold, list) else [gold]
    parts = [f'<p class="question">{escape(str(sample.get("query", "")))}</p>']
    fields = {
        "answer": sample.get("answer"),
        "expected": " | ".join(map(str, gold)),
        "passage": sample.get("passage"),
    }
    for label, text in fields.items():
        if text is not None:
            parts.append(f'<p><span class="label">{label}</span>{escape(str(text))}</p>')
    hit = sample.get("retrieved_gold")
    if hit is not None:
        verdict = '<span class="good">✓ gold</span>' if hit else '<span class="bad">✗ another passage</span>'
        parts.append(f'<p><span class="label">retrieved</span>{verdict}</p>')
    return f'<div class="card sample">{"".join(parts)}</div>\n'


def _configuration(config: dict[str, Any]) -> str:
    cells = [(key, json.dumps(value, ensure_ascii=False)) for key, value in _flat(config)]
    rows = "".join("<tr>" + "".join(f'<td class="code">{escape(c)}</td>' for c in row) + "</tr>" for row in cells)
    table = f'<div class="scroll"><table>{rows}</table></div>'
    return f'<details class="card"><summary>every resolved value</summary>{table}</details>' if rows else ""


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """A figure that does not use pyplot, whose state is global."""
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(width, height), layout=layout)


def _draw(axes: Axes, lines: dict[str, Curve]) -> None:
    """Draws the curves: long, noisy ones pale with a smoothed curve on top, short ones with markers."""
    for colour, (name, (steps, values)) in zip(cycle(COLOURS), lines.items(), strict=False):
        if len(steps) > 60:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, _smooth(values), color=colour, linewidth=1.8, label=name)
        else:
            axes.plot(steps, values, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=name)
    axes.set_xlabel("step", color=GREY, fontsize=9)
    axes.tick_params(colors=GREY, labelsize=9)
    axes.grid(color=GREY, alpha=0.18, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=GREY)


def _smooth(values: list[float]) -> list[float]:
    """The mean over a centred window of 1/25 of the curve. Unlike an exponential moving average it has no lag."""
    half, sums = len(values) // 50, [0.0, *accumulate(values)]
    windows = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in windows]


def _png(figure: Figure, background: str = "none") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor=background)
    return buffer.getvalue()
