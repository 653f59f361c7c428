"""COVID-QA in five folds of whole articles: what a user could take, side by side, compared by article.

    python benchmarks/covidqa_folds.py COVIDQA FOLDER --folds 5     # rows and corpus with their documents
    python benchmarks/covidqa.py --data FOLDER --retriever ENCODER --generator LM [--method M] [--fold I] [--seed S]
    python benchmarks/covidqa.py --table                            # the table of docs/results.md

A piece is one method on one fold with one seed, by the real commands; every piece ranks the windows of all articles.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ds_rag.evaluation.comparison import Comparison, Options, compare
from ds_rag.evaluation.per_question import PerQuestion, read_per_question
from ds_rag.evaluation.seeds_and_folds import join

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "covidqa"
RECIPE = "ds_configs/recipes/real_encoder.yaml"
FOLDS = 5
READ = 16  # passages that the generator reads to rank them again
METRICS = ("recall@1", "recall@10", "mrr@10")
DS_RAG = [sys.executable, "-m", "ds_rag.commands.cli"]


@dataclass(frozen=True)
class Method:
    """evaluate: flags of the evaluation; train: of the training before it, or None; reads: with the generator."""

    evaluate: tuple[str, ...] = ()
    train: tuple[str, ...] | None = None
    reads: bool = False


# No generator takes part: the objective has none. Held-out rows are those of the fold, nothing beside.
INFONCE = ("--objective", "infonce", "--contrastive_weight", "0", "--eval_fraction", "0")
METHODS = {
    "bm25": Method(("--retriever", "bm25")),
    "zero_shot": Method(),
    "hybrid_zero_shot": Method(("--hybrid", "bm25")),
    "reranked": Method(("--rerank", str(READ)), reads=True),
    "infonce_gold": Method(train=INFONCE),
    "hybrid_infonce_gold": Method(("--hybrid", "bm25"), train=INFONCE),
}
# line of the table -> method, and what the names of its metrics begin with
LINES = {
    "BM25": ("bm25", ""),
    "zero-shot": ("zero_shot", ""),
    "zero-shot + BM25": ("hybrid_zero_shot", ""),
    "re-ranked, posterior": ("reranked", "rerank_posterior/"),
    "re-ranked, likelihood": ("reranked", "rerank_likelihood/"),
    "InfoNCE with gold": ("infonce_gold", ""),
    "InfoNCE with gold + BM25": ("hybrid_infonce_gold", ""),
}


def run(words: list[str], log: Path) -> None:
    """One command, its console in the log. Raises CalledProcessError, with the log's end on standard error."""
    with log.open("a") as stream:
        done = subprocess.run([*DS_RAG, *words], stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT)
    if done.returncode:
        sys.stderr.write(log.read_text()[-3000:])
        raise subprocess.CalledProcessError(done.returncode, words)


def train_words(args: argparse.Namespace, how: Method, place: Path, fold: int, seed: int) -> list[str]:
    words = ["train", "--config", RECIPE, "--train_data", str(args.data / "rows.jsonl"), "--retriever", args.retriever]
    words += ["--corpus", str(args.data / "corpus.jsonl"), "--folds", str(FOLDS), "--fold", str(fold)]
    return [*words, *(how.train or ()), "--seed", str(seed), "--refresh_index", "0", "--output_dir", str(place)]


def measure(args: argparse.Namespace, method: str, fold: int, seed: int, scratch: Path) -> dict[str, Any]:
    """One piece. Methods with the same training share its run."""
    how, log, commands, began = METHODS[method], scratch / "log", [], time.monotonic()
    models = ["--retriever", args.retriever, *(["--generator", args.generator] if how.reads else [])]
    if how.train is not None:
        place = args.runs / f"{method.removeprefix('hybrid_')}-fold-{fold}-seed-{seed}"
        commands.append(train_words(args, how, place, fold, seed))
        if not (place / "results.json").exists():
            run(commands[0], log)
        models = ["--run", str(place)]
    out = scratch / "found.json"
    words = ["evaluate", *(() if "--retriever" in how.evaluate else models), *how.evaluate]
    words += ["--data", str(args.data / "rows.jsonl"), "--corpus", str(args.data / "corpus.jsonl")]
    commands.append([*words, "--folds", str(FOLDS), "--fold", str(fold), "--eval_answers", "false"])
    run([*commands[-1], "--json", str(out)], log)
    figures, table = json.loads(out.read_text()), read_per_question(Path(f"{out}.questions.parquet"))
    kept = {name: values for name, values in table.metrics.items() if name.rpartition("/")[2] in METRICS}
    return {
        "method": method,
        "fold": fold,
        "seed": seed,
        "commands": [as_text(args, words) for words in commands],
        "minutes": round((time.monotonic() - began) / 60, 2),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "retrieval": figures["retrieval"],
        "intervals": figures["intervals"],
        "signature": table.signature,
        "ids": table.ids,
        "documents": table.documents,
        "metrics": {name: [round(value, 6) for value in values.tolist()] for name, values in kept.items()},
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


def table_of(piece: dict[str, Any], prefix: str) -> PerQuestion:
    metrics = {name: np.array(piece["metrics"][prefix + name], dtype=np.float64) for name in METRICS}
    return PerQuestion(piece["ids"], piece["documents"], metrics, signature=piece["signature"])


def show_table(folder: Path) -> Comparison:
    """Prints Markdown: each line's figures with intervals, and how far it is from zero-shot and from BM25; writes
    comparison.json. Pieces of the folds have other rows each, the joined methods have the same."""
    pieces = complete_pieces(folder)
    systems = [
        join(line, [table_of(piece, prefix) for piece in pieces[method]])
        for line, (method, prefix) in LINES.items()
        if method in pieces
    ]
    result = compare(systems, Options())
    (folder / "comparison.json").write_text(json.dumps(result.as_json(), indent=1) + "\n")
    print(f"| | seeds | {' | '.join(METRICS)} | recall@1 against zero-shot | against BM25 | minutes |")
    print("|---|---|" + "---|" * (len(METRICS) + 3))
    for system in systems:
        means = [result.figures[metric].systems[system.name] for metric in METRICS]
        cells = [f"{m.mean:.3f} ({m.interval[0]:.3f}-{m.interval[1]:.3f})" if m.interval else "" for m in means]
        cells += [against(result, base, system.name) for base in ("zero-shot", "BM25")]
        minutes = sum(piece["minutes"] for piece in pieces[LINES[system.name][0]])
        print(f"| {system.name} | {system.seeds} | {' | '.join(cells)} | {minutes:.0f} |")
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
    parser.add_argument("--method", nargs="*", choices=list(METHODS), default=list(METHODS))
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
    methods = [name for name in args.method if args.generator or not METHODS[name].reads]
    pieces = [(m, f, s) for m in methods for s in (args.seed if METHODS[m].train else [0]) for f in args.fold]
    for number, (method, fold, seed) in enumerate(pieces, start=1):
        file = args.results / f"{method}-fold-{fold}-seed-{seed}.json"
        if file.exists():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            found = measure(args, method, fold, seed, Path(scratch))
        file.write_text(json.dumps(found) + "\n")
        figures = "  ".join(f"{metric} {found['retrieval'][metric]:.3f}" for metric in METRICS)
        print(
            f"{number}/{len(pieces)} {method}, fold {fold}, seed {seed}: {figures}  {found['minutes']} min", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
