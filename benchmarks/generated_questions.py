"""A retriever trained on questions that a language model wrote about the passages, judged by human ones (COVID-QA).

    python benchmarks/covidqa_folds.py COVIDQA FOLDER --folds 5
    ds-rag qa-gen FOLDER/corpus.jsonl --generator LM --retriever ENC --out new.jsonl --rejected bad.jsonl
    python benchmarks/generated_questions.py --data FOLDER --retriever ENC --generated new.jsonl --rejected bad.jsonl
    python benchmarks/generated_questions.py --table

No human question is used in training. `own`: one training on all generated questions, also those about the articles
that judge, as a user has it whose own documents are asked about. `others`: for each fold a training on questions about
the articles of the other folds alone. `others_by_text`: the same, and with the questions that only the filters which
search or read have rejected. `others_found`: of these the questions whose passage the untrained retriever finds (the
round trip passes them), `others_not_found`: those whose passage it does not find. `as_many_human`: labelled human
questions in place of those of `others`, as many, drawn at random. Windows and labels are always COVID-QA's. A piece is
kept and not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from covidqa import RECIPE
from covidqa import RESULTS as COVIDQA
from folded_runs import ROOT, Line, Piece, complete_pieces, kept_vectors, make_pieces, measure, show_table, systems_of

RESULTS = ROOT / "benchmarks" / "results" / "generated_questions"
FOLDS = 5
# Method -> filters of `ds-rag qa-gen` whose rejected questions are trained on too: of those that search or read.
READ_TOO = {
    "others_by_text": ("round_trip", "duplicate", "gain"),
    "others_found": ("duplicate", "gain"),
    "others_not_found": ("round_trip",),  # these alone
}
METHODS = ("own", "others", *READ_TOO, "as_many_human")
LINES = {
    "BM25": Line("infonce_gold", "before", "bm25/"),
    "zero-shot": Line("infonce_gold", "before"),
    "zero-shot + BM25": Line("infonce_gold", "before", "hybrid/"),
    "generated, own articles": Line("own"),
    "generated, own articles + BM25": Line("own", "after", "hybrid/"),
    "generated, other articles": Line("others"),
    "generated, other articles + BM25": Line("others", "after", "hybrid/"),
    "generated, other articles, filters of the text alone": Line("others_by_text"),
    "generated, other articles, filters of the text alone + BM25": Line("others_by_text", "after", "hybrid/"),
    "generated, other articles, found by zero-shot": Line("others_found"),
    "generated, other articles, found by zero-shot + BM25": Line("others_found", "after", "hybrid/"),
    "generated, other articles, not found by zero-shot": Line("others_not_found"),
    "generated, other articles, not found by zero-shot + BM25": Line("others_not_found", "after", "hybrid/"),
    "as many human questions": Line("as_many_human"),
    "as many human questions + BM25": Line("as_many_human", "after", "hybrid/"),
    "human questions": Line("infonce_gold"),
    "human questions + BM25": Line("infonce_gold", "after", "hybrid/"),
}
Row = dict[str, Any]


def read_lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def piece(args: argparse.Namespace, method: str, fold: int, seed: int, scratch: Path) -> Row:
    """One piece. `own` is trained once, and measured on all rows, of which each fold takes its own."""
    trained_on = 0 if method == "own" else fold
    place = args.runs / f"{method}-fold-{trained_on}-seed-{seed}"
    kept = place / "piece.json"
    if not kept.exists():
        fold_of = json.loads((args.data / "folds.json").read_text())["documents"]
        rows, asked = read_lines(args.generated), read_lines(args.data / "rows.jsonl")
        if method in READ_TOO:
            kept_by_all = [] if method == "others_not_found" else rows
            rows = kept_by_all + [row for row in read_lines(args.rejected) if row["filter"] in READ_TOO[method]]
        if method != "own":
            rows = [row for row in rows if fold_of[row["document"]] != fold]
            human = [row for row in asked if fold_of[row["document"]] != fold]
            asked = [row for row in asked if fold_of[row["document"]] == fold]
        if method == "as_many_human":
            random.Random(0).shuffle(human)
            rows = human[: len(rows)]
        files = {"train": rows, "eval": asked}
        for name, lines in files.items():
            (scratch / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
        words = ["train", "--config", RECIPE, "--corpus", str(args.data / "corpus.jsonl")]
        words += ["--train_data", str(scratch / "train.jsonl"), "--eval_data", str(scratch / "eval.jsonl")]
        words += ["--retriever", args.retriever, "--objective", "infonce", "--contrastive_weight", "0"]
        words += ["--refresh_index", "0", "--num_train_epochs", args.epochs, "--seed", str(seed)]
        words += [*kept_vectors(args.vectors), "--output_dir", str(place)]
        about = {"method": method, "seed": seed, "questions": len(rows)}
        names = {scratch: "scratch", args.data: "covidqa", args.retriever: "ENCODER", args.runs: "runs"}
        names |= {args.vectors: "vectors"}
        found = measure(words, scratch / "log", {w: place / w for w in ("before", "after")}, about, names)
        kept.write_text(json.dumps(found))
    return of_fold(json.loads(kept.read_text()), args.data, fold) | {"fold": fold}


def of_fold(found: Row, data: Path, fold: int) -> Row:
    """The piece with the questions of one fold's articles alone. Where there were others, the hash of all rows is no
    longer theirs."""
    fold_of = json.loads((data / "folds.json").read_text())["documents"]
    evaluations = {}
    for when, table in found["evaluations"].items():
        keep = [n for n, document in enumerate(table["documents"]) if fold_of[document] == fold]
        metrics = {name: [values[n] for n in keep] for name, values in table["metrics"].items()}
        lists = {key: [table[key][n] for n in keep] for key in ("ids", "documents")}
        signature = table["signature"] | ({} if len(keep) == len(table["ids"]) else {"data_hash": None})
        evaluations[when] = table | lists | {"metrics": metrics, "signature": signature}
    return found | {"evaluations": evaluations}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that covidqa_folds.py made")
    parser.add_argument("--retriever", help="folder of an encoder")
    parser.add_argument("--generated", type=Path, help="what `ds-rag qa-gen` wrote")
    parser.add_argument("--rejected", type=Path, help="what its --rejected wrote, for others_by_text")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "generated", help="where trainings are kept")
    parser.add_argument("--vectors", type=Path, help="folder that keeps the vectors of the corpus (--vector_cache)")
    parser.add_argument("--epochs", default="auto", help="passes over the generated questions, as --num_train_epochs")
    parser.add_argument("--method", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--fold", nargs="*", type=int, default=list(range(FOLDS)))
    parser.add_argument("--table", action="store_true", help="print the table of the pieces that are there")
    args = parser.parse_args()
    if not args.table and None in (args.data, args.retriever, args.generated):
        parser.error("--data, --retriever and --generated are needed")
    if not args.table and READ_TOO.keys() & set(args.method) and args.rejected is None:
        parser.error(f"{', '.join(READ_TOO)} need --rejected")
    return args


def main() -> int:
    args = parsed()
    if args.table:
        pieces = complete_pieces(COVIDQA, ["infonce_gold"], range(FOLDS))
        pieces |= complete_pieces(args.results, METHODS, range(FOLDS))
        result = show_table(systems_of(pieces, LINES), ("zero-shot", "BM25", "human questions"))
        (args.results / "comparison.json").write_text(json.dumps(result.as_json(), indent=1) + "\n")
        return 0
    args.results.mkdir(parents=True, exist_ok=True)
    args.data, args.runs = args.data.resolve(), args.runs.resolve()
    args.vectors = args.vectors and args.vectors.resolve()
    pieces_wanted = [Piece(method, fold, 0) for method in args.method for fold in args.fold]
    make_pieces(pieces_wanted, lambda method: args.results, lambda p, scratch: piece(args, *p, scratch), LINES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
