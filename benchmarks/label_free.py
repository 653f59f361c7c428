"""A retriever taught by a frozen language model, without labels: COVID-QA in five folds of whole articles.

    python benchmarks/covidqa_folds.py COVIDQA FOLDER --folds 5     # rows and corpus with their documents
    python benchmarks/label_free.py --data FOLDER --retriever ENCODER --generator LM [--method M] [--fold I] [--seed S]
    python benchmarks/label_free.py --table --json label_free.json  # the tables of docs/results.md

Settings were chosen on fold 0 (fold_0_trials.json says how), so folds 1 to 4 judge; the table of all five stands below
theirs.

A piece is one method on one fold with one seed, by the real command, and is written to RESULTS when it ends; a piece
that is there is not repeated. Teachers other than the language model (teachers.py) give scores for the same passages as
a column of the rows; their files are made in FOLDER/teachers when they are first needed, and have to be deleted, as the
pieces, when the recipe or a model changes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import teachers
from covidqa import RESULTS as COVIDQA
from folded_runs import (
    ROOT,
    Difference,
    Line,
    Piece,
    complete_pieces,
    difference,
    kept_vectors,
    make_pieces,
    measure,
    run,
    show_table,
    systems_of,
)

from ds_rag.config.flags import read_recipe
from ds_rag.evaluation.comparison import Comparison
from ds_rag.evaluation.seeds_and_folds import System
from ds_rag.evaluation.significance import cluster_sums, drawn_means, effective_number, expanded_tail
from ds_rag.run.verdict import DETECTED, WIDTH

RESULTS = ROOT / "benchmarks" / "results" / "label_free"
RECIPES = ROOT / "ds_configs" / "recipes"
SUM = "label_free_lexical"  # BM25 is in its scores, so that there is nothing to fuse
TUNED = "infonce_gold_2_epochs"  # the best of InfoNCE with gold on fold 0
FOLDS, JUDGES = 5, (1, 2, 3, 4)  # fold 0 chose the settings
GOLD = ("--objective", "infonce", "--contrastive_weight", "0", "--eval_fraction", "0", "--refresh_index", "0")


class Method(NamedTuple):
    """recipe: its name. flags: beside it. teacher: whose scores are in the rows; None: the rows as they are.
    other_answers: each row has the answer of another."""

    recipe: str
    flags: tuple[str, ...] = ()
    teacher: str | None = None
    other_answers: bool = False


METHODS = {
    "infonce_gold": Method("real_encoder", GOLD),
    "label_free": Method("label_free"),
    SUM: Method("label_free", ("--lexical_prior", "1")),
    # gold and one passage that index and BM25 find: as many passages a row as label-free, and as hard ones
    "gold_same_candidates": Method(
        "real_encoder", (*GOLD, "--candidates_from", "index,bm25", "--index_candidates", "1")
    ),
    TUNED: Method("real_encoder", (*GOLD, "--num_train_epochs", "2")),
    # gold, and the two passages that label-free has
    "gold_and_teacher": Method(
        "label_free",
        ("--train_labels", "true", "--contrastive_weight", "1", "--contrastive_symmetric", "true", "--candidates", "3"),
    ),
    "reader_scores": Method("label_free", teacher="reader"),  # label-free by the way of the controls
    "permuted_teacher": Method("label_free", teacher="permuted"),
    "permuted_answers": Method("label_free", other_answers=True),
    "bm25_teacher": Method("label_free", teacher="bm25"),
    "overlap_teacher": Method("label_free", teacher="overlap"),
}
NAMES = {
    "infonce_gold": "InfoNCE with gold",
    "label_free": "label-free",
    SUM: "label-free, BM25 in the prior",
    "gold_same_candidates": "InfoNCE with gold, one found passage beside it",
    TUNED: "InfoNCE with gold, two epochs",
    "gold_and_teacher": "gold and teacher",
    "reader_scores": "label-free, scores in the rows",
    "permuted_teacher": "teacher's scores permuted",
    "permuted_answers": "answers permuted",
    "bm25_teacher": "BM25 as teacher",
    "overlap_teacher": "answer's words as teacher",
}
LINES = {
    "BM25": Line("infonce_gold", "before", "bm25/"),
    "zero-shot": Line("infonce_gold", "before"),
    "zero-shot + BM25": Line("infonce_gold", "before", "hybrid/"),
    **{NAMES[method]: Line(method) for method in METHODS},
    **{f"{NAMES[method]} + BM25": Line(method, "after", "hybrid/") for method in METHODS if method != SUM},
}


def results_of(method: str, results: Path) -> Path:
    """Where a method's pieces are: those of InfoNCE are covidqa.py's, unless there are some beside the others."""
    return results if method != "infonce_gold" or any(results.glob(f"{method}-fold-*")) else COVIDQA


def words_of(args: argparse.Namespace, method: str, fold: int, seed: int) -> list[str]:
    """The command of a piece."""
    how = METHODS[method]
    words = ["train", "--config", str(RECIPES / f"{how.recipe}.yaml"), "--corpus", str(args.data / "corpus.jsonl")]
    words += [
        "--retriever",
        args.retriever,
        "--seed",
        str(seed),
        "--output_dir",
        str(place_of(args, method, fold, seed)),
    ]
    if how.teacher is None:
        rows = rows_with_other_answers(args) if how.other_answers else args.data / "rows.jsonl"
        words += ["--train_data", str(rows), "--folds", str(FOLDS), "--fold", str(fold)]
    else:
        scored = rows_of_teacher(args, how.teacher, fold)
        words += ["--train_data", str(scored), "--eval_data", str(rows_of_fold(args, fold)), "--teacher", "scores"]
        words += ["--candidates_from", "batch", "--candidates_by", "retriever"]
    if how.recipe == "label_free" and how.teacher is None:
        words += ["--generator", args.generator, "--teacher_cache", str(args.teacher_cache)]
    words += ["--num_train_epochs", "1", "--warmup_steps", "20"]  # the recipes', when these were measured
    return [*words, *kept_vectors(args.vectors), "--eval_fraction", "0", "--eval_answers", "false", *how.flags]


def place_of(args: argparse.Namespace, method: str, fold: int, seed: int) -> Path:
    runs: Path = args.runs
    return runs / f"{method}-fold-{fold}-seed-{seed}"


def rows_of_fold(args: argparse.Namespace, fold: int) -> Path:
    """The rows of the articles that a fold holds out, as a file."""
    file: Path = args.data / "teachers" / f"rows-fold-{fold}.jsonl"
    if not file.exists():
        fold_of = json.loads((args.data / "folds.json").read_text())["documents"]
        assert set(fold_of.values()) == set(range(FOLDS)), "covidqa_folds.py --folds 5"
        lines = (args.data / "rows.jsonl").read_text(encoding="utf-8").splitlines()
        held_out = [line for line in lines if fold_of[json.loads(line)["document"]] == fold]
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(held_out) + "\n", encoding="utf-8")
    return file


def rows_with_other_answers(args: argparse.Namespace) -> Path:
    """All rows, their answers permuted. Labels, by which held-out rows are measured, are as they were."""
    file: Path = args.data / "teachers" / "rows-other-answers.jsonl"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        teachers.permute_answers(args.data / "rows.jsonl", file)
    return file


def rows_of_teacher(args: argparse.Namespace, teacher: str, fold: int) -> Path:
    """The training rows of a fold with the scores of a teacher, for the passages that the language model has scored."""
    folder: Path = args.data / "teachers"
    folder.mkdir(exist_ok=True)
    scored, out = folder / f"scored-fold-{fold}.jsonl", folder / f"{teacher}-fold-{fold}.jsonl"
    if not scored.exists():
        words = ["score", "--config", str(RECIPES / "label_free.yaml"), "--corpus", str(args.data / "corpus.jsonl")]
        words += ["--train_data", str(args.data / "rows.jsonl"), "--folds", str(FOLDS), "--fold", str(fold)]
        words += ["--retriever", args.retriever, "--generator", args.generator, "--eval_fraction", "0"]
        kept = ["--teacher_cache", str(args.teacher_cache), *kept_vectors(args.vectors)]
        run([*words, *kept, "--out", str(scored)], folder / "log")
    if not out.exists():
        corpus = (args.data / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["text"] for line in corpus]
        made: dict[str, Callable[[], teachers.Teacher]] = {
            "reader": lambda: teachers.reader,
            "permuted": lambda: teachers.permuted,
            "bm25": lambda: teachers.by_words(texts),
            "overlap": lambda: teachers.overlap(texts),
        }
        embedded = read_recipe(str(RECIPES / "label_free.yaml"))["candidates"]
        teachers.write_rows(scored, out, made[teacher](), keep=int(embedded))
    return out


def piece(args: argparse.Namespace, method: str, fold: int, seed: int, scratch: Path) -> dict[str, Any]:
    """One piece. A training measures before and after, each beside BM25 and the hybrid."""
    place = place_of(args, method, fold, seed)
    tables = {when: place / when for when in ("before", "after")}
    about = {"method": method, "fold": fold, "seed": seed}
    return measure(words_of(args, method, fold, seed), scratch / "log", tables, about, names_of(args))


def names_of(args: argparse.Namespace) -> dict[object, str]:
    """What stands for this machine's paths in a command that is kept."""
    named = {args.data: "covidqa", args.retriever: "ENCODER", args.generator: "LM", args.runs: "runs"}
    return {**named, args.teacher_cache: "scores", args.vectors: "vectors", f"{ROOT}/": ""}


def share_of_gain(of: System, base: System, whole: System, metric: str = "recall@1") -> tuple[float, float, float]:
    """(share, lower, upper): how much of `whole`'s gain over `base` `of` has, with the interval of a bootstrap that
    draws documents, the same for all three."""
    place = [{id_: n for n, id_ in enumerate(system.ids)} for system in (of, base, whole)]
    values_QM = np.stack(
        [
            s.figures[metric].mean(0)[[at[id_] for id_ in of.ids]]
            for s, at in zip((of, base, whole), place, strict=True)
        ],
        axis=1,
    )
    sums_GM, sizes_G = cluster_sums(values_QM, of.clusters)
    found, zero, full = values_QM.mean(0)
    means_RM = drawn_means(sums_GM, sizes_G, 10_000, 0)
    if (means_RM[:, 2] <= means_RM[:, 1]).any():  # a share of no gain says nothing
        return float((found - zero) / (full - zero)), float("nan"), float("nan")
    shares = (means_RM[:, 0] - means_RM[:, 1]) / (means_RM[:, 2] - means_RM[:, 1])
    tail = expanded_tail(0.025, effective_number(sizes_G))
    low, high = np.quantile(shares, [tail, 1 - tail])
    return float((found - zero) / (full - zero)), float(low), float(high)


def table(results: Path, folds: Sequence[int]) -> dict[str, Any]:
    """Prints the table of these folds, and the share of the gain with gold; returns what `--json` writes of it."""
    pieces: dict[str, list[dict[str, Any]]] = {}
    for method in METHODS:
        pieces |= complete_pieces(results_of(method, results), [method], folds)
    systems = {system.name: system for system in systems_of(pieces, LINES)}
    result = show_table(list(systems.values()), ("zero-shot", NAMES["infonce_gold"], "BM25", NAMES["label_free"]))
    found = figures(result, pieces)
    found["label_free_against"] = above(result, "label_free", [m for m in METHODS if m != "label_free"])
    found["gold_and_teacher_against"] = above(result, "gold_and_teacher", ["infonce_gold", TUNED])
    found["hybrids_against"] = hybrids(result)
    keys = {(m, "infonce_gold"): f"share_of_gold_gain_{m}" for m in METHODS if m != "infonce_gold"}
    keys["label_free", "infonce_gold"] = "share_of_gold_gain"
    keys["label_free", TUNED] = "share_of_tuned_gold_gain"
    for (method, gold), key in keys.items():
        if NAMES[method] not in systems or NAMES[gold] not in systems:
            continue
        share, low, high = share_of_gain(systems[NAMES[method]], systems["zero-shot"], systems[NAMES[gold]])
        print(
            f"\nShare of the gain of {NAMES[gold]} in recall@1, {NAMES[method]}: {share:.2f} ({low:.2f} to {high:.2f})"
        )
        found[key] = {"share": share, "interval": [low, high]}
    return found


def above(result: Comparison, one: str, others: Sequence[str]) -> dict[str, Any]:
    """A method minus each of others, alone and with BM25: the comparisons that were asked for, so that p is that of
    each by itself; and the smallest difference of recall@1 that each shows with power 0.8. Prints a table."""
    found: dict[str, Any] = {}
    for method in others:
        cells = {}
        for more, metric in itertools.product(("", " + BM25"), ("recall@1", "mrr@10")):
            name = NAMES[one] + more * (one != SUM)
            if of_both := difference(result, metric, NAMES[method] + more * (method != SUM), name):
                cells[f"{'hybrid/' if more else ''}{metric}"] = of_both
        if cells:
            if not found:
                titles = ("recall@1", "MRR@10", "with BM25: recall@1", "MRR@10")
                print(f"\n| {NAMES[one]} minus | {' | '.join(titles)} |\n|---|---|---|---|---|")
            texts = (f"{c.value:+.3f} ({c.low:+.3f} to {c.high:+.3f}), p {c.p:.4f}" for c in cells.values())
            print(f"| {NAMES[method]} | {' | '.join(texts)} |")
            found[method] = {
                key: {"difference": c.value, "interval": [c.low, c.high], "p": c.p, "detects": detects(c)}
                for key, c in cells.items()
            }
    return found


def hybrids(result: Comparison) -> dict[str, Any]:
    """Label-free with BM25, both ways, minus BM25 and minus zero-shot with BM25, p by itself. Prints a table."""
    found: dict[str, Any] = {}
    for name, base in itertools.product((NAMES[SUM], "label-free + BM25"), ("BM25", "zero-shot + BM25")):
        cells = {metric: difference(result, metric, base, name) for metric in ("recall@1", "mrr@10")}
        if not all(cells.values()):
            continue
        if not found:
            print("\n| | minus | recall@1 | MRR@10 |\n|---|---|---|---|")
        texts = (f"{c.value:+.3f} ({c.low:+.3f} to {c.high:+.3f}), p {c.p:.4f}" for c in cells.values() if c)
        print(f"| {name} | {base} | {' | '.join(texts)} |")
        found[f"{name} minus {base}"] = {key: {"difference": c.value, "p": c.p} for key, c in cells.items() if c}
    return found


def detects(of: Difference) -> float:
    """The smallest difference that such a comparison finds four times in five at 5 %."""
    return DETECTED * (of.high - of.low) / WIDTH


def figures(result: Comparison, pieces: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The figures of each line under its key, and p of label-free against zero-shot."""
    keys = {"BM25": "bm25", "zero-shot": "zero_shot", "zero-shot + BM25": "hybrid_zero_shot"}
    keys |= {NAMES[method]: method for method in METHODS}
    keys |= {f"{NAMES[method]} + BM25": f"hybrid_{method}" for method in METHODS}
    found: dict[str, Any] = {}
    for name, key in keys.items():
        means = {metric: result.figures[metric].systems.get(name) for metric in ("recall@1", "mrr@10")}
        if None in means.values():
            continue
        some = pieces.get(key, [])
        found[key] = {metric: mean.mean for metric, mean in means.items() if mean}
        found[key]["interval"] = {metric: mean.interval for metric, mean in means.items() if mean}
        found[key]["minutes"] = sum(p["minutes"] for p in some) / len(some) if some else None
    pair = {"zero-shot", NAMES["label_free"]}
    p = [pair_.p for pair_ in result.figures["recall@1"].pairs if {pair_.a, pair_.b} == pair]
    return found | {"p_label_free_vs_zero_shot": p[0] if p else None}  # by itself; the table's are Holm's


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that covidqa_folds.py made")
    parser.add_argument("--retriever", help="folder of an encoder")
    parser.add_argument("--generator", help="folder of a causal LM")
    parser.add_argument(
        "--teacher_cache", type=Path, default=ROOT / "runs" / "scores", help="where its scores are kept"
    )
    parser.add_argument("--vectors", type=Path, help="folder that keeps the vectors of the corpus (--vector_cache)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "label_free", help="where trainings are kept")
    parser.add_argument("--method", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--fold", nargs="*", type=int, default=list(range(FOLDS)))
    parser.add_argument("--seed", nargs="*", type=int, default=[0])
    parser.add_argument("--table", action="store_true", help="print the tables of the pieces that are there")
    parser.add_argument("--json", type=Path, help="also write the tables' figures to this file")
    args = parser.parse_args()
    if not args.table and None in (args.data, args.retriever, args.generator):
        parser.error("--data, --retriever and --generator are needed")
    return args


def main() -> int:
    args = parsed()
    if args.table:
        found = {"judged": table(args.results, JUDGES)}
        print("\nAll folds, that which chose the settings among them:\n")
        found["all"] = table(args.results, range(FOLDS))
        if args.json:
            args.json.write_text(json.dumps(found["judged"] | {"all": found["all"]}, indent=1) + "\n")
        return 0
    for name in ("data", "runs", "teacher_cache", "vectors"):
        if getattr(args, name) is not None:
            setattr(args, name, getattr(args, name).resolve())
    args.results.mkdir(parents=True, exist_ok=True)
    pieces = [Piece(m, f, s) for m in args.method for s in args.seed for f in args.fold]
    make_pieces(pieces, lambda m: results_of(m, args.results), lambda p, scratch: piece(args, *p, scratch), LINES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
