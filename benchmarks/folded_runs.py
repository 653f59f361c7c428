"""What benchmarks over folds share: pieces (one method on one fold with one seed), kept as JSON, joined into one table.

A piece is made by the real command and not repeated; `systems_of` joins the folds of a method, several seeds being
several seeds of one system, and `show_table` compares the lines as `ds-rag compare` does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ds_rag.evaluation.comparison import Comparison, Options, compare
from ds_rag.evaluation.per_question import TABLE, PerQuestion, read_per_question
from ds_rag.evaluation.seeds_and_folds import System, join

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("recall@1", "recall@10", "mrr@10")
DS_RAG = [sys.executable, "-m", "ds_rag.commands.cli"]


class Line(NamedTuple):
    """A line of the table: the method whose pieces it is from, the evaluation of a piece, and what the names of the
    metrics begin with there."""

    method: str
    when: str = "after"
    prefix: str = ""


class Piece(NamedTuple):
    """One method on one fold with one seed."""

    method: str
    fold: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-fold-{self.fold}-seed-{self.seed}"


def make_pieces(
    pieces: Sequence[Piece],
    folder_of: Callable[[str], Path],
    make: Callable[[Piece, Path], dict[str, Any]],
    lines: Mapping[str, Line],
) -> None:
    """Makes the pieces whose file is not there yet, and prints their figures. folder_of: of a method's files. make:
    gives what is kept of a piece, with the help of a scratch folder."""
    for number, piece in enumerate(pieces, start=1):
        file = folder_of(piece.method) / f"{piece.name}.json"
        if file.exists():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            found = make(piece, Path(scratch))
        file.write_text(json.dumps(found) + "\n")
        own = {name: line for name, line in lines.items() if line.method == piece.method}
        shown = {name: table_of(found, line.when, line.prefix).means() for name, line in own.items()}
        text = "; ".join(f"{name} {values['recall@1']:.3f}" for name, values in shown.items())
        print(f"{number}/{len(pieces)} {piece.name}: recall@1 of {text}  ({found['minutes']} min)", flush=True)


def run(words: Sequence[str], log: Path) -> None:
    """One command, its console in the log. Raises CalledProcessError, with the log's end on standard error."""
    with log.open("a") as stream:
        done = subprocess.run([*DS_RAG, *words], stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT)
    if done.returncode:
        sys.stderr.write(log.read_text()[-3000:])
        raise subprocess.CalledProcessError(done.returncode, list(words))


def measure(
    words: Sequence[str], log: Path, tables: Mapping[str, Path], about: Mapping[str, Any], names: Mapping[object, str]
) -> dict[str, Any]:
    """Runs a piece's command and returns what is kept of it. tables: evaluation -> the path that its files begin with.
    about: `method`, `fold` and `seed`. names: what stands for this machine's paths in the command."""
    began = time.monotonic()
    run(words, log)
    return {
        **about,
        "command": as_text(words, names),
        "minutes": round((time.monotonic() - began) / 60, 2),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "gated_queries": gated(tables),
        "evaluations": {when: kept(read_per_question(Path(f"{stem}{TABLE}"))) for when, stem in tables.items()},
    }


def gated(tables: Mapping[str, Path]) -> int | None:
    """Queries that taught nothing in the training that left these tables; None where there was no gate."""
    results = next(iter(tables.values())).parent / "results.json"
    return json.loads(results.read_text()).get("gated_queries") if results.exists() else None


def kept_vectors(folder: Path | None) -> list[str]:
    """The flag of `--vectors DIR`: the corpus is encoded once for all pieces that begin with one encoder, which takes
    the time of it off their minutes."""
    return ["--vector_cache", str(folder)] if folder is not None else []


def as_text(words: Sequence[str], names: Mapping[object, str]) -> str:
    """A command as one line, with names in place of this machine's paths."""
    line = " ".join(["ds-rag", *words])
    for path, name in names.items():
        line = line.replace(str(path), name) if path else line
    return line


def kept(table: PerQuestion) -> dict[str, Any]:
    """What the table needs, and the signature."""
    metrics = {name: values for name, values in table.metrics.items() if name.rpartition("/")[2] in METRICS}
    return {
        "signature": table.signature,
        "ids": table.ids,
        "documents": table.documents,
        "metrics": {name: [round(value, 6) for value in values.tolist()] for name, values in metrics.items()},
    }


def table_of(piece: dict[str, Any], when: str, prefix: str) -> PerQuestion:
    found = piece["evaluations"][when]
    metrics = {name: np.array(found["metrics"][prefix + name], dtype=np.float64) for name in METRICS}
    return PerQuestion(found["ids"], found["documents"], metrics, signature=found["signature"])


def complete_pieces(folder: Path, methods: Sequence[str], folds: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Method -> its pieces, of seeds of which all these folds are there."""
    found: dict[str, list[dict[str, Any]]] = {}
    for method in methods:
        pieces = [json.loads(file.read_text()) for file in sorted(folder.glob(f"{method}-fold-*-seed-*.json"))]
        for seed in sorted({piece["seed"] for piece in pieces}):
            some = [piece for piece in pieces if piece["seed"] == seed and piece["fold"] in folds]
            if len(some) == len(folds):
                found.setdefault(method, []).extend(some)
    return found


def systems_of(pieces: Mapping[str, list[dict[str, Any]]], lines: Mapping[str, Line]) -> list[System]:
    """The lines whose pieces are there, each the join of its folds. What is measured before training is the same with
    every seed, so it is taken from one."""
    return [
        join(
            name,
            [
                table_of(piece, line.when, line.prefix)
                for piece in pieces[line.method]
                if line.when == "after" or piece["seed"] == min(other["seed"] for other in pieces[line.method])
            ],
        )
        for name, line in lines.items()
        if line.method in pieces
    ]


def show_table(systems: Sequence[System], bases: Sequence[str]) -> Comparison:
    """Prints Markdown: each line's figures with intervals, and how far its recall@1 is from that of each base."""
    if not systems:
        raise SystemExit("no method has a piece of every fold")
    result = compare(systems, Options())
    bases = [base for base in bases if any(system.name == base for system in systems)]
    heads = [f"recall@1 against {base}" for base in bases]
    print(f"| {' | '.join(['', 'seeds', *METRICS, *heads])} |")
    print("|---" * (2 + len(METRICS) + len(bases)) + "|")
    for system in systems:
        means = [result.figures[metric].systems[system.name] for metric in METRICS]
        cells = [f"{m.mean:.3f} ({m.interval[0]:.3f}-{m.interval[1]:.3f})" if m.interval else "" for m in means]
        cells += [against(result, base, system.name) for base in bases]
        print(f"| {' | '.join([system.name, str(system.seeds), *cells])} |")
    first = result.figures[result.figure]
    print(f"\n{first.n} questions of {first.documents} articles ({first.effective_documents:.1f} effective).")
    print("\n".join(result.notes))
    return result


class Difference(NamedTuple):
    """p: by itself; p_holm: corrected for all pairs of the comparison."""

    value: float
    low: float
    high: float
    p: float
    p_holm: float


def difference(result: Comparison, metric: str, base: str, name: str) -> Difference | None:
    """How far the line `name` is above the line `base`; None where they are not compared."""
    for pair in result.figures[metric].pairs:
        if {pair.a, pair.b} == {base, name} and pair.interval:
            sign = 1 if pair.a == base else -1
            low, high = sorted(sign * end for end in pair.interval)
            return Difference(sign * pair.difference, low, high, pair.p, pair.p_holm)
    return None


def against(result: Comparison, base: str, name: str) -> str:
    """The difference of a line to another's recall@1, with its interval and Holm's p."""
    found = difference(result, result.figure, base, name)
    return f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f}), p {found.p_holm:.4f}" if found else ""
