"""The picture of a comparison: means of the systems and their differences, each with its interval."""

from __future__ import annotations

from pathlib import Path

from ds_rag.evaluation.comparison import ALPHA, Comparison, Ends
from ds_rag.runtime.atomic_files import replacing
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_file, is_stream

PNG = b"\x89PNG"
BLUE, GREY = "#3b82f6", "#808690"  # a difference that is one, and one that is not shown


def check_picture(path: str | None) -> None:
    """To be called before the work: the place of `--plot FILE`. Only another picture is replaced. Raises UserError."""
    if path is None:
        return
    place = check_file(path, "--plot")
    if is_stream(path) or not place.is_file() or not place.stat().st_size:
        return
    with place.open("rb") as stream:
        if stream.read(len(PNG)) != PNG:
            raise UserError("--plot: another file is there", found=place, expected="a new name, or a PNG to replace")


def write_picture(result: Comparison, path: Path) -> None:
    """Left the mean of each system, small dots for its seeds; right the difference of each pair, blue where p after
    Holm is at most 0.05. Of the figure with a verdict."""
    from matplotlib.figure import Figure  # slow to import

    figure = result.figures[result.figure]
    height = 1.4 + 0.34 * max(len(figure.systems), len(figure.pairs))
    drawing = Figure(figsize=(10, height), layout="constrained")
    left, right = drawing.subplots(1, 2)
    for row, system in enumerate(figure.systems.values()):
        left.scatter(system.seeds, [row] * len(system.seeds), s=9, color=GREY, zorder=2)
        left.errorbar(system.mean, row, xerr=lengths(system.mean, system.interval), fmt="o", color=BLUE, capsize=3)
    for row, pair in enumerate(figure.pairs):
        colour = BLUE if pair.p_holm <= ALPHA else GREY
        error = lengths(pair.difference, pair.interval)
        right.errorbar(pair.difference, row, xerr=error, fmt="o", color=colour, capsize=3)
    right.axvline(0, color=GREY, linewidth=0.8)
    sides = ((left, list(figure.systems)), (right, [f"{pair.b} - {pair.a}" for pair in figure.pairs]))
    for axes, names in sides:
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(color=GREY, alpha=0.18, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_title(f"{result.figure}, {figure.n} questions", fontsize=10)
    right.set_title("difference, 95 % interval", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, binary=True) as stream:
        drawing.savefig(stream, format="png", dpi=160, facecolor="white")


def lengths(middle: float, ends: Ends) -> list[list[float]] | None:
    """Of an error bar, to the left and to the right. An interval need not hold the mean exactly between its ends."""
    return None if ends is None else [[max(0.0, middle - ends[0])], [max(0.0, ends[1] - middle)]]
