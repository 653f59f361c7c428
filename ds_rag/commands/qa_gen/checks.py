"""Mistakes in the arguments of `ds-rag qa-gen`, found before any model is opened."""

from __future__ import annotations

import argparse
from pathlib import Path

from ds_rag.evaluation.questions.judged import WORDS
from ds_rag.evaluation.questions.rows import split_file
from ds_rag.evaluation.questions.sieve import FILTERS
from ds_rag.run.open_saved import BY_WORDS
from ds_rag.run.output_dir import check_beside_run
from ds_rag.runtime import collectives
from ds_rag.runtime.errors import UserError, choose
from ds_rag.runtime.output_places import check_file, check_json, is_stream, place_of

KEYS = ("questions", "filters")  # of the JSON, by which it is known again


def generations_file(out: str) -> Path:
    """Where the generations are: beside `--out`."""
    place = place_of(out, "--out")
    return place.with_name(place.name + ".generations.jsonl")


def skipped(args: argparse.Namespace) -> set[str]:
    """The names in `--skip_filters`. Raises UserError for an unknown one."""
    names = {name.strip() for name in args.skip_filters.split(",")} - {""}
    for name in names:
        choose(FILTERS, name, "filter of --skip_filters")
    return names


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError for flags that contradict each other, and for places that cannot be written."""
    skip, by_words = skipped(args), getattr(args, "retriever", BY_WORDS) == BY_WORDS
    if by_words and args.round_trip_by not in (None, WORDS) and "round_trip" not in skip:
        raise UserError(
            f"--round_trip_by {args.round_trip_by} without a retriever",
            expected=f"--retriever FOLDER, or --round_trip_by {WORDS}",
        )
    if args.qa_temperature == 0 and args.questions_per_passage > 1:
        raise UserError(
            "--temperature 0: all questions about a passage would be the same",
            found=f"--questions_per_passage {args.questions_per_passage}",
            fix="--questions_per_passage 1, or a temperature above 0",
        )
    if collectives.rank() != 0:
        return
    check_json(args.json, KEYS)
    if is_stream(args.out):
        raise UserError(
            "--out: a device or a pipe", found=args.out, expected="a file, for what is written is kept beside it"
        )
    store, split = generations_file(args.out), split_file(Path(args.eval_out)) if args.eval_out else None
    ours = {"--out": (args.out, store), "--rejected": (args.rejected, store), "--eval_out": (args.eval_out, split)}
    given = {flag: path for flag, (path, _) in ours.items()} | {"--json": args.json, "the passages": args.passages}
    given |= {"--examples": args.examples, "the generations": store, "the split": split}
    places = {flag: place_of(path, flag) for flag, path in given.items() if path is not None}
    if len(set(places.values())) < len(places):
        twice = [flag for flag, place in places.items() if list(places.values()).count(place) > 1]
        raise UserError(f"{' and '.join(twice)}: the same file", expected="a file for each")
    for flag, (path, beside) in ours.items():
        if path is not None and beside is not None:  # replaced if an earlier call of this command wrote it
            check_beside_run(check_file(path, flag, args.overwrite or beside.exists()), flag)
