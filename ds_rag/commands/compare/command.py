"""`ds-rag compare A B ...`: which differences between systems are more than chance? Without torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ds_rag.commands.compare.picture import check_picture, write_picture
from ds_rag.evaluation.comparison import Comparison, Ends, Options, compare
from ds_rag.evaluation.metrics import without_repeats
from ds_rag.evaluation.per_question import TABLE, read_per_question
from ds_rag.evaluation.seeds_and_folds import join
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_json, write_json

BEFORE, AFTER = "before", "after"  # a run's evaluations
AGAIN = "ds-rag evaluate --json FILE leaves it beside FILE; training leaves before and after in the run's folder"


def main(args: argparse.Namespace) -> int:
    """The command."""
    check_json(args.json, ("figure", "figures", "verdicts"))
    check_picture(args.plot)
    systems = [
        join(name, [read_per_question(path) for path in paths], args.cluster_column)
        for name, paths in named_tables(args.systems).items()
    ]
    result = compare(systems, Options(args.figure, args.different_data))
    show(result, Console())
    write_json(args.json, result.as_json())
    if args.plot is not None:
        write_picture(result, Path(args.plot))
    return 0


def named_tables(words: Sequence[str]) -> dict[str, list[Path]]:
    """System -> its tables. Raises UserError for fewer than two systems, for a name or a table given twice, and for a
    table that is not there."""
    if len(words) == 1 and Path(words[0]).is_dir():
        return {name: [table_of(Path(words[0]), name)] for name in (BEFORE, AFTER)}
    given = [split(word) for word in words]
    short = [own or short_name(paths[0]) for own, paths in given]
    tables: dict[str, list[Path]] = {}
    for name, (own, paths) in zip(short, given, strict=True):
        name = name if own or short.count(name) == 1 else str(paths[0])
        if name in tables:
            raise UserError(f"two systems are called {name}", expected="one name each", fix="NAME=PATH gives a name")
        tables[name] = [table_of(path, AFTER) for path in paths]
        if len({path.resolve() for path in tables[name]}) < len(paths):
            raise UserError(
                f"{name}: one table twice", found=", ".join(map(str, paths)), expected="other seeds or folds"
            )
    if len(tables) < 2:
        raise UserError("nothing to compare with", found=words[0], expected="two systems or more, or one run's folder")
    return tables


def split(word: str) -> tuple[str | None, list[Path]]:
    """NAME and its paths; no name where the word is a path."""
    name, equals, paths = word.partition("=")
    if Path(word).exists() or not equals:
        return None, [Path(word)]
    if not name or not all(paths.split(",")):
        raise UserError(f"{word}: a name or a path is missing", expected="NAME=PATH[,PATH...]")
    return name, [Path(paths)] if Path(paths).exists() else [Path(path) for path in paths.split(",")]


def short_name(path: Path) -> str:
    return path.resolve().name.removesuffix(TABLE).removesuffix(".json")


def table_of(path: Path, when: str) -> Path:
    """The table of a run's evaluation, of a JSON of figures, or the table itself. Raises UserError."""
    if path.is_dir():
        places = [path / f"{when}{TABLE}"]
    elif path.name.endswith(TABLE):
        places = [path]
    else:
        places = [Path(f"{path}{TABLE}"), path.with_suffix(TABLE)]
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"{path}: no results per question", expected=" or ".join(map(str, places)), fix=AGAIN)


def show(result: Comparison, console: Console) -> None:
    """Tables of means and of differences, then the notes and the verdicts."""
    first = result.figures[result.figure]
    by_system = [
        {name: figure.systems[system].mean for name, figure in result.figures.items() if system in figure.systems}
        for system in first.systems
    ]
    figures = {name: result.figures[name] for name in without_repeats(*by_system)}
    means = [
        [name, system, f"{m.mean:.3f}", spell(m.interval, ".3f"), spell_seeds(m.seeds), str(figure.n)]
        for name, figure in figures.items()
        for system, m in figure.systems.items()
    ]
    console.table(
        f"{result.questions} questions in common, {first.documents} documents",
        ["figure", "system", "mean", "95 % interval", "seeds", "n"],
        means,
    )
    differences = [
        [name, f"{p.b} - {p.a}", f"{p.difference:+.3f}", spell(p.interval, "+.3f"), f"{p.p:.4f}", f"{p.p_holm:.4f}"]
        for name, figure in figures.items()
        for p in figure.pairs
    ]
    console.table(
        f"differences; p by itself, and after Holm over {len(first.pairs)} of each figure",
        ["figure", "of", "difference", "95 % interval", "p", "p Holm"],
        differences,
    )
    if any(result.left_out.values()):
        counts = ", ".join(f"{count} of {name}" for name, count in result.left_out.items() if count)
        console.say(f"note: questions left out, since not all systems have them: {counts}")
    for note in result.notes:
        console.say(note, style="yellow" if note.startswith("warning") else None)
    console.say(f"verdict on {result.figure}, for these trained models, not for training anew:")
    for line in result.verdicts:
        console.say(f"  {line}")


def spell(ends: Ends, form: str) -> str:
    return "none" if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"


def spell_seeds(means: list[float]) -> str:
    """Their number, and the smallest and the largest mean where there are several."""
    return "1" if len(means) == 1 else f"{len(means)}: {min(means):.3f} to {max(means):.3f}"
