"""COVID-QA in five folds of whole articles: what a user could take, side by side, compared by article.

    python benchmarks/covidqa_folds.py COVIDQA FOLDER --folds 5     # rows and corpus with their documents
    python benchmarks/covidqa.py --data FOLDER --retriever ENCODER --generator LM [--method M] [--fold I] [--seed S]
    python benchmarks/covidqa.py --table                            # the table of docs/results.md

A piece is one method on one fold with one seed, by the real command; every piece ranks the windows of all articles.
Its figures, also those of each question, are written to RESULTS/METHOD-fold-I-seed-S.json when it ends, and a piece
that is there is not repeated. `--table` joins the folds of a method and compares methods as `ds-rag compare` does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ds_rag.evaluation.comparison import Comparison, Options, compare
from ds_rag.evaluation.per_question import TABLE, PerQuestion, read_per_question
from ds_rag.evaluation.seeds_and_folds import join

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "covidqa"
RECIPE = "ds_configs/recipes/real_encoder.yaml"
FOLDS = 5
READ = 8  # passages that the generator reads to rank them again
METRICS = ("recall@1", "recall@10", "mrr@10")
DS_RAG = [sys.executable, "-m", "ds_rag.commands.cli"]


METHODS = ("infonce_gold", "reranked")
# line of the table -> method, evaluation of its piece, and what the names of the metrics begin with
LINES = {
    "BM25": ("infonce_gold", "before", "bm25/"),
    "zero-shot": ("infonce_gold", "before", ""),
    "zero-shot + BM25": ("infonce_gold", "before", "hybrid/"),
    "re-ranked, posterior": ("reranked", "only", "rerank_posterior/"),
    "re-ranked, likelihood": ("reranked", "only", "rerank_likelihood/"),
    "InfoNCE with gold": ("infonce_gold", "after", ""),
    "InfoNCE with gold + BM25": ("infonce_gold", "after", "hybrid/"),
}


def run(words: list[str], log: Path) -> None:
    """One command, its console in the log. Raises CalledProcessError, with the log's end on standard error."""
    with log.open("a") as stream:
        done = subprocess.run([*DS_RAG, *words], stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT)
    if done.returncode:
        sys.stderr.write(log.read_text()[-3000:])
        raise subprocess.CalledProcessError(done.returncode, words)


def words_of(args: argparse.Namespace, method: str, fold: int, seed: int, place: Path) -> list[str]:
    """The command of a piece. place: the run's folder, or the JSON file of the evaluation."""
    rows, corpus = str(args.data / "rows.jsonl"), ["--corpus", str(args.data / "corpus.jsonl")]
    folds = [*corpus, "--folds", str(FOLDS), "--fold", str(fold), "--retriever", args.retriever]
    if method == "reranked":
        flags = ["--generator", args.generator, "--rerank", str(READ), "--eval_answers", "false", "--json", str(place)]
        return ["evaluate", "--data", rows, *folds, *flags]
    # No generator takes part in this objective. Held out are the rows of the fold, none besides.
    flags = ["--objective", "infonce", "--contrastive_weight", "0", "--eval_fraction", "0", "--refresh_index", "0"]
    return [
        "train",
        "--config",
        RECIPE,
        "--train_data",
        rows,
        *folds,
        *flags,
        "--seed",
        str(seed),
        "--output_dir",
        str(place),
    ]


def measure(args: argparse.Namespace, method: str, fold: int, seed: int, scratch: Path) -> dict[str, Any]:
    """One piece. A training measures before and after, each beside BM25 and the hybrid."""
    began = time.monotonic()
    place = scratch / "found.json" if method == "reranked" else args.runs / f"{method}-fold-{fold}-seed-{seed}"
    words = words_of(args, method, fold, seed, place)
    run(words, scratch / "log")
    names = {"only": f"{place}"} if method == "reranked" else {when: f"{place / when}" for when in ("before", "after")}
    return {
        "method": method,
        "fold": fold,
        "seed": seed,
        "command": as_text(args, words),
        "minutes": round((time.monotonic() - began) / 60, 2),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "evaluations": {when: kept(read_per_question(Path(f"{stem}{TABLE}"))) for when, stem in names.items()},
    }


def kept(table: PerQuestion) -> dict[str, Any]:
    """What the table of this page needs, and the signature."""
    metrics = {name: values for name, values in table.metrics.items() if name.rpartition("/")[2] in METRICS}
    return {
        "signature": table.signature,
        "ids": table.ids,
        "documents": table.documents,
        "metrics": {name: [round(value, 6) for value in values.tolist()] for name, values in metrics.items()},
    }


def as_text(args: argparse.Namespace, words: list[str]) -> str:
    """A command as one line, with names in place of this machine's paths."""
    names = {args.data: "covidqa", args.retriever: "ENCODER", args.generator: "LM", args.runs: "runs"}
    line = " ".join(["ds-rag", *words])
    for path, name in names.items():
        line = line.replace(str(path), name) if path else line
    return line


def complete_pieces(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Method -> its pieces, of seeds of which all folds are there."""
    found: dict[str, list[dict[str, Any]]] = {}
    for method in METHODS:
        pieces = [json.loads(file.read_text()) for file in sorted(folder.glob(f"{method}-fold-*-seed-*.json"))]
        for seed in sorted({piece["seed"] for piece in pieces}):
            some = [piece for piece in pieces if piece["seed"] == seed]
            if len(some) == FOLDS:
                found.setdefault(method, []).extend(some)
    return found


def table_of(piece: dict[str, Any], when: str, prefix: str) -> PerQuestion:
    found = piece["evaluations"][when]
    metrics = {name: np.array(found["metrics"][prefix + name], dtype=np.float64) for name in METRICS}
    return PerQuestion(found["ids"], found["documents"], metrics, signature=found["signature"])


def show_table(folder: Path) -> Comparison:
    """Prints Markdown: each line's figures with intervals, and how far it is from zero-shot and from BM25; writes
    comparison.json. Pieces of the folds have other rows each, the joined methods have the same."""
    pieces = complete_pieces(folder)
    systems = [
        join(line, [table_of(piece, when, prefix) for piece in pieces[method] if when == "after" or not piece["seed"]])
        for line, (method, when, prefix) in LINES.items()
        if method in pieces
    ]
    result = compare(systems, Options())
    (folder / "comparison.json").write_text(json.dumps(result.as_json(), indent=1) + "\n")
    print(f"| | seeds | {' | '.join(METRICS)} | recall@1 against zero-shot | against BM25 |")
    print("|---|---|" + "---|" * (len(METRICS) + 2))
    for system in systems:
        means = [result.figures[metric].systems[system.name] for metric in METRICS]
        cells = [f"{m.mean:.3f} ({m.interval[0]:.3f}-{m.interval[1]:.3f})" if m.interval else "" for m in means]
        cells += [against(result, base, system.name) for base in ("zero-shot", "BM25")]
        print(f"| {system.name} | {system.seeds} | {' | '.join(cells)} |")
    for method, some in pieces.items():
        print(f"\n{method}: {sum(piece['minutes'] for piece in some) / len(some):.1f} minutes a piece")
    first = result.figures[result.figure]
    print(f"\n{first.n} questions of {first.documents} articles ({first.effective_documents:.1f} effective).")
    print("\n".join(result.notes))
    return result


def against(result: Comparison, base: str, name: str) -> str:
    """The difference of a line to another's recall@1, with its interval and Holm's p."""
    for pair in result.figures[result.figure].pairs:
        if {pair.a, pair.b} == {base, name} and pair.interval:
            sign = 1 if pair.a == base else -1
            low, high = sorted(sign * end for end in pair.interval)
            return f"{sign * pair.difference:+.3f} ({low:+.3f} to {high:+.3f}), p {pair.p_holm:.4f}"
    return ""


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that covidqa_folds.py made")
    parser.add_argument("--retriever", help="folder of an encoder")
    parser.add_argument("--generator", help="folder of a causal LM; without it `reranked` is left out")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "covidqa", help="where trainings are kept")
    parser.add_argument("--method", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--fold", nargs="*", type=int, default=list(range(FOLDS)))
    parser.add_argument("--seed", nargs="*", type=int, default=[0], help="of trainings; the others have seed 0 alone")
    parser.add_argument("--table", action="store_true", help="print the table of the pieces that are there")
    args = parser.parse_args()
    if not args.table and (args.data is None or args.retriever is None):
        parser.error("--data and --retriever are needed")
    return args


def main() -> int:
    args = parsed()
    if args.table:
        show_table(args.results)
        return 0
    args.results.mkdir(parents=True, exist_ok=True)
    args.data, args.runs = args.data.resolve(), args.runs.resolve()
    methods = [name for name in args.method if args.generator or name != "reranked"]
    pieces = [(m, f, s) for m in methods for s in ([0] if m == "reranked" else args.seed) for f in args.fold]
    for number, (method, fold, seed) in enumerate(pieces, start=1):
        file = args.results / f"{method}-fold-{fold}-seed-{seed}.json"
        if file.exists():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            found = measure(args, method, fold, seed, Path(scratch))
        file.write_text(json.dumps(found) + "\n")
        figures = {line: table_of(found, when, p).means() for line, (m, when, p) in LINES.items() if m == method}
        shown = "; ".join(f"{line} {values['recall@1']:.3f}" for line, values in figures.items())
        print(f"{number}/{len(pieces)} {file.stem}: recall@1 of {shown}  ({found['minutes']} min)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
