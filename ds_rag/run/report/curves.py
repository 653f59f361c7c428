"""The curves of a run, from metrics.jsonl: those of the report, and the README's picture.

plot_curves(Path("runs/quickstart/metrics.jsonl"), Path("docs/curves.png"))
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from itertools import accumulate, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ds_rag.run.metrics_file import read_metrics
from ds_rag.run.report.parts import escape, number
from ds_rag.runtime.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[list[float], list[float]]  # steps, values

# title -> (kind of line, beginnings of the keys to draw)
PANELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Loss": ("train", ("loss",)),
    "Retrieval, held-out questions": ("eval", ("recall@", "mrr@", "ndcg@")),
    "Answer in the passages found, held-out questions": ("eval", ("answer_in_top@",)),
    "Answers, held-out questions": ("eval", ("exact_match", "f1", "rougeL")),
    "Entropy over the passages (nats)": ("train", ("prior_entropy", "posterior_entropy")),
    "Embedding spread": ("train", ("embedding_spread",)),
    "Gradient norm": ("train", ("grad_norm",)),
    "Fraction of the score gradient": ("train", ("grad_share/",)),
}
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#eab308")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), "-.", (0, (8, 2, 1, 2)))
FRACTIONS = ("recall@", "mrr@", "ndcg@", "hit@", "answer_in_top@", "exact_match", "f1", "rougeL", "grad_share/")
MARGINS = {"left": 0.12, "right": 0.98, "bottom": 0.16, "top": 0.84}
GREY = "#808690"  # legible on a light and on a dark page


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


def curves(metrics: list[dict[str, Any]], kind: str, keys: tuple[str, ...], *, exact: bool = False) -> dict[str, Curve]:
    """Metric -> (steps, finite values), for each metric whose name begins with (`exact`: is) one of `keys`.

    A step that was written twice, as after resuming, counts once: the later line is used.
    """
    found: dict[str, dict[float, float]] = {}
    for line in metrics:
        for name, value in line.items() if line.get("kind") == kind else ():
            finite = number(value)
            if finite is not None and (name in keys if exact else name.startswith(keys)):
                found.setdefault(name, {})[line["step"]] = finite
    order = sorted(found, key=lambda name: next(i for i, key in enumerate(keys) if name.startswith(key)))
    return {name: (sorted(found[name]), [found[name][step] for step in sorted(found[name])]) for name in order}


def curves_html(metrics: list[dict[str, Any]]) -> str:
    pictures = []
    for title, (kind, keys) in PANELS.items():
        lines = curves(metrics, kind, keys)
        if lines:
            figure = _figure(5.6, 2.9, layout=None)  # fixed margins: a constrained layout would draw each figure twice
            _draw(figure.subplots(gridspec_kw=MARGINS), lines)
            data = base64.b64encode(_png(figure)).decode()
            pictures.append(
                f'<figure class="card"><figcaption>{escape(title)}</figcaption>'
                f'<img alt="{escape(in_words(title, lines))}" src="data:image/png;base64,{data}"></figure>'
            )
    return f'<div class="grid">{"".join(pictures)}</div>' if pictures else ""


def joined(lines: Mapping[str, Curve]) -> dict[str, Curve]:
    """The curves, equal ones once, under all their names."""
    names: dict[tuple[tuple[float, ...], tuple[float, ...]], list[str]] = {}
    for name, (steps, values) in lines.items():
        names.setdefault((tuple(steps), tuple(values)), []).append(name)
    return {" = ".join(same): (list(steps), list(values)) for (steps, values), same in names.items()}


def in_words(title: str, lines: Mapping[str, Curve]) -> str:
    """What a picture shows, for those who hear it: the first and the last value of each line."""
    ends = [f"{name} from {values[0]:.3g} to {values[-1]:.3g}" for name, (_, values) in lines.items()]
    return f"{title} over training steps: {', '.join(ends)}"


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """A figure that does not use pyplot, whose state is global."""
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(width, height), layout=layout)


def _draw(axes: Axes, lines: dict[str, Curve]) -> None:
    """Draws the curves: long, noisy ones pale with a smoothed curve on top, short ones with markers. Equal ones are one
    line, with all their names. Fractions have an axis from 0 to 1, others begin at 0 if they can."""
    from matplotlib.ticker import MaxNLocator

    fractions = all(name.startswith(FRACTIONS) for name in lines)
    highest = max(max(values) for _, values in lines.values())
    lowest = min(min(values) for _, values in lines.values())
    several, lines = len(lines) > 1, joined(lines)
    for colour, style, (name, (steps, values)) in zip(cycle(COLOURS), cycle(DASHES), lines.items(), strict=False):
        look: dict[str, Any] = {"color": colour, "linewidth": 1.8, "linestyle": style, "label": name}
        if len(steps) > 60:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, _smooth(values), **look)
        else:
            axes.plot(steps, values, marker="o", markersize=3.5, **look)
    if fractions:
        axes.set_ylim(-0.03, 1.03)
    elif lowest >= 0 and highest > 0:
        axes.set_ylim(0, 1.05 * highest)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step", color=GREY, fontsize=9)
    axes.tick_params(colors=GREY, labelsize=9)
    axes.grid(color=GREY, alpha=0.18, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    if several:  # above the curves, where it hides none
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "borderaxespad": 0.1}
        axes.legend(frameon=False, fontsize=8, labelcolor=GREY, handlelength=2.6, **place)


def _smooth(values: list[float]) -> list[float]:
    """The mean over a centred window of 1/25 of the curve. Unlike an exponential moving average it has no lag."""
    half, sums = len(values) // 50, [0.0, *accumulate(values)]
    windows = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in windows]


def _png(figure: Figure, background: str = "none") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor=background)
    return buffer.getvalue()
