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
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from folded_runs import ROOT, Line, Piece, complete_pieces, kept_vectors, make_pieces, measure, show_table, systems_of

RESULTS = ROOT / "benchmarks" / "results" / "covidqa"
RECIPE = "ds_configs/recipes/real_encoder.yaml"
FOLDS = 5
READ = 8  # passages that the generator reads to rank them again
METHODS = ("infonce_gold", "reranked")
LINES = {
    "BM25": Line("infonce_gold", "before", "bm25/"),
    "zero-shot": Line("infonce_gold", "before"),
    "zero-shot + BM25": Line("infonce_gold", "before", "hybrid/"),
    "re-ranked, posterior": Line("reranked", "only", "rerank_posterior/"),
    "re-ranked, likelihood": Line("reranked", "only", "rerank_likelihood/"),
    "InfoNCE with gold": Line("infonce_gold"),
    "InfoNCE with gold + BM25": Line("infonce_gold", "after", "hybrid/"),
}


def words_of(args: argparse.Namespace, method: str, fold: int, seed: int, place: Path) -> list[str]:
    """The command of a piece. place: the run's folder, or the JSON file of the evaluation."""
    rows, corpus = str(args.data / "rows.jsonl"), ["--corpus", str(args.data / "corpus.jsonl")]
    folds = [*corpus, "--folds", str(FOLDS), "--fold", str(fold), "--retriever", args.retriever]
    folds += kept_vectors(args.vectors)
    if method == "reranked":
        flags = ["--generator", args.generator, "--rerank", str(READ), "--eval_answers", "false", "--json", str(place)]
        flags += ["--teacher_cache", str(args.teacher_cache)]
        return ["evaluate", "--data", rows, *folds, *flags]
    # No generator takes part in this objective. Held out are the rows of the fold, none besides.
    flags = ["--objective", "infonce", "--contrastive_weight", "0", "--eval_fraction", "0", "--refresh_index", "0"]
    flags += ["--num_train_epochs", "1", "--warmup_steps", "20"]  # the recipe's, when these were measured
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


def piece(args: argparse.Namespace, method: str, fold: int, seed: int, scratch: Path) -> dict[str, Any]:
    """One piece. A training measures before and after, each beside BM25 and the hybrid."""
    place = scratch / "found.json" if method == "reranked" else args.runs / f"{method}-fold-{fold}-seed-{seed}"
    tables = {"only": place} if method == "reranked" else {when: place / when for when in ("before", "after")}
    about = {"method": method, "fold": fold, "seed": seed}
    return measure(words_of(args, method, fold, seed, place), scratch / "log", tables, about, names_of(args))


def names_of(args: argparse.Namespace) -> dict[object, str]:
    """What stands for this machine's paths in a command that is kept."""
    return {
        args.data: "covidqa",
        args.retriever: "ENCODER",
        args.generator: "LM",
        args.runs: "runs",
        args.teacher_cache: "scores",
        args.vectors: "vectors",
    }


def table(folder: Path) -> None:
    """Prints the table and the minutes of a piece, and writes comparison.json. Pieces of the folds have other rows
    each, the joined methods have the same."""
    pieces = complete_pieces(folder, METHODS, range(FOLDS))
    result = show_table(systems_of(pieces, LINES), ("zero-shot", "BM25"))
    (folder / "comparison.json").write_text(json.dumps(result.as_json(), indent=1) + "\n")
    for method, some in pieces.items():
        print(f"\n{method}: {sum(piece['minutes'] for piece in some) / len(some):.1f} minutes a piece")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that covidqa_folds.py made")
    parser.add_argument("--retriever", help="folder of an encoder")
    parser.add_argument("--generator", help="folder of a causal LM; without it `reranked` is left out")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "covidqa", help="where trainings are kept")
    parser.add_argument("--teacher_cache", type=Path, default=ROOT / "runs" / "scores", help="the generator's scores")
    parser.add_argument("--vectors", type=Path, help="folder that keeps the vectors of the corpus (--vector_cache)")
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
        table(args.results)
        return 0
    args.results.mkdir(parents=True, exist_ok=True)
    args.data, args.runs, args.teacher_cache = (p.resolve() for p in (args.data, args.runs, args.teacher_cache))
    args.vectors = args.vectors and args.vectors.resolve()
    methods = [name for name in args.method if args.generator or name != "reranked"]
    pieces = [Piece(m, f, s) for m in methods for s in ([0] if m == "reranked" else args.seed) for f in args.fold]
    make_pieces(pieces, lambda method: args.results, lambda p, scratch: piece(args, *p, scratch), LINES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
