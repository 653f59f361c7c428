"""`ds-rag COMMAND ...`; each command's code is imported when it is called, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import ds_rag
from ds_rag.config import DataConfig
from ds_rag.config.bounds import ITEMS, above, inner_share, real, whole
from ds_rag.config.flags import Parser, add_number, as_text, build_parser, parse, parse_strictly, reading_parser
from ds_rag.run.folder import claim as claim_folder
from ds_rag.runtime import stop_signals
from ds_rag.runtime.errors import UserError, choose
from ds_rag.runtime.launcher_env import adopt_srun, allow_open_files, check_launch
from ds_rag.runtime.log import Console, capture, run_command
from ds_rag.runtime.safe_loading import forbid_pickles
from ds_rag.runtime.standard_streams import flush_standard_streams, guard_standard_streams, read_utf8


def train(argv: Sequence[str]) -> int:
    config = parse(argv)
    allow_open_files(os.environ)
    stop_signals.watch()  # before the heavy imports, which take longer than a scheduler's patience
    rank = int(os.environ.get("RANK", 0))
    if rank == 0:
        folder = claim_folder(config)
        console = capture(folder, rank)
    else:  # rank 0 may still be replacing the folder
        folder = Path(config.run.output_dir)
        console = capture(Path(tempfile.mkdtemp(prefix="ds_rag-")), rank)
    console.say(f"ds_rag {ds_rag.__version__}: loading libraries, rows and models")
    from ds_rag.train import main as run

    return run(config, folder, console)


def together(name: str, run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """A command that several ranks may share: one that waits in vain for another names the command."""
    allow_open_files(os.environ)
    from ds_rag.runtime.stop_agreement import naming

    with naming(name):
        return run(args)


def evaluate(argv: Sequence[str]) -> int:
    parser = reading_parser("ds-rag evaluate", "Score a run, or a pair of model folders, on held-out rows.")
    parser.add_argument("--data", dest="eval_data", default=argparse.SUPPRESS, help="the held-out rows")
    parser.add_argument("--controls", action="store_true", help="also answer closed-book and from the gold passage")
    parser.add_argument("--json", help="write the figures to this file too")
    args = parse_strictly(parser, argv)
    from ds_rag.commands.evaluate import main as run

    return together("ds-rag evaluate", run, args)


def index(argv: Sequence[str]) -> int:
    parser = reading_parser("ds-rag index", "Encode a corpus with a run's retriever and build its FAISS index.")
    parser.add_argument("--out", help="folder of the index (default: RUN/index, which is replaced)")
    args = parse_strictly(parser, argv)
    from ds_rag.commands.index import main as run

    return together("ds-rag index", run, args)


def verify(argv: Sequence[str]) -> int:
    parser = Parser("ds-rag verify", description="Is a run, a checkpoint or an index whole?")
    parser.add_argument("path", help="the folder")
    parser.add_argument("--json", help="write what was found to this file too")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    args = parse_strictly(parser, argv)
    from ds_rag.commands.verify import main as run

    return run(args)


def merge(argv: Sequence[str]) -> int:
    parser = reading_parser("ds-rag merge", "Add a run's adapters to the weights of their bases: whole models.")
    parser.add_argument("--out", help="folder of the models (default: RUN/merged)")
    args = parse_strictly(parser, argv)
    from ds_rag.commands.merge import main as run

    return run(args)


def ask(argv: Sequence[str]) -> int:
    parser = reading_parser("ds-rag ask", "Answer a question with a run's models and index.", "run")
    parser.add_argument("question", help="the question, in quotes")
    parser.add_argument("--index", help="folder of another index (default: RUN/index)")
    parser.add_argument("--allow_stale", action="store_true", help="search an index of other weights, and say so")
    parser.add_argument("--json", help="write answer and passages to this file too")
    args = parse_strictly(parser, argv)
    args.question = as_text(args.question, "the question")
    if not args.question.strip():
        raise UserError("no question", found=repr(args.question), expected="some words, in quotes")
    from ds_rag.commands.ask import main as run

    return run(args)


def mine(argv: Sequence[str]) -> int:
    parser = reading_parser("ds-rag mine", "Write rows with hard negatives, found by a retriever.")
    parser.add_argument("--data", dest="eval_data", default=argparse.SUPPRESS, help="the rows to mine for")
    parser.add_argument("--out", required=True, help="the JSONL file to write")
    add_number(parser, "negatives", whole(1, ITEMS), "mined for each row, at most (default: 7)", 7)
    add_number(parser, "depth", whole(1, ITEMS), "passages looked at for each row (default: 50)", 50)
    add_number(
        parser, "margin", above(0, 1e6, math.inf), "most of the positive's score (default: 0.95; inf: off)", 0.95
    )
    add_number(parser, "absolute_margin", real(0, 1e9), "least distance below the positive's score")
    add_number(parser, "max_score", real(-1e9, 1e9), "highest score of a negative")
    add_number(parser, "posterior", inner_share(), "highest share of p(passage | query, answer), by the generator")
    parser.add_argument("--overwrite", action="store_true", help="replace --out where it exists")
    parser.add_argument("--json", help="write the counts to this file too")
    args = parse_strictly(parser, argv)
    from ds_rag.commands.mine import main as run

    return together("ds-rag mine", run, args)


def check(argv: Sequence[str]) -> int:
    of_texts = {"retriever", "generator", "query_prefix", "passage_prefix"}
    of_texts |= {"prompt_template", "chat_template", "prompt_version"}
    of_rows = {f.name for f in fields(DataConfig)} - {"train_data", "on_bad_row", "assume_first_positive", "world_seed"}
    only = of_texts | of_rows | {"trust_remote_code"}
    about = "Report every bad row, what repeats, labels, lengths and overlap; 1 is returned where rows are bad or none."
    parser = build_parser("ds-rag check", about, ("data", "model"), only)
    parser.add_argument("train_data", metavar="DATA", help="the rows, in any format that training takes")
    parser.add_argument("--json", help="write everything to this file too")
    args = parse_strictly(parser, argv)
    from ds_rag.commands.check import main as run

    return run(args)


def report(argv: Sequence[str]) -> int:
    parser = Parser("ds-rag report", description="Write report.html of a run again.")
    parser.add_argument("run", help="a run's folder")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    run = Path(parse_strictly(parser, argv).run)
    if not run.is_dir():
        raise UserError("ds-rag report: not a folder", found=run, expected="a run's folder")
    from ds_rag.run import export
    from ds_rag.run.html_report import MADE_HERE, write_report
    from ds_rag.runtime import json_files

    page = run / "report.html"
    if page.is_file() and MADE_HERE not in page.read_text(encoding="utf-8", errors="replace"):
        raise UserError("another report.html is there", found=page, expected="none, or this run's", fix="rename it")
    export.ready(run, only={json_files.CONFIG, json_files.RESULTS})
    Console().say(str(write_report(run)))
    return 0


def plan(argv: Sequence[str]) -> int:
    from ds_rag.commands.plan.command import main as run

    return run(argv)


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "train retriever and generator together"),
    "evaluate": (evaluate, "score a run, or a pair of model folders, on held-out rows"),
    "index": (index, "re-encode a corpus with a run's retriever"),
    "merge": (merge, "whole models from a run that learned adapters"),
    "verify": (verify, "is a run, a checkpoint or an index whole?"),
    "ask": (ask, "answer a question with a run"),
    "check": (check, "bad rows, repetitions, labels and lengths of data, before anything is trained"),
    "mine": (mine, "write rows with hard negatives, found by a retriever"),
    "plan": (plan, "what a run will need: memory, GPUs, time, the index; and its flags"),
    "report": (report, "write report.html of a run again"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 after a message about what to mend."""
    guard_standard_streams()
    read_utf8()
    try:
        return answer(list(sys.argv[1:] if argv is None else argv))
    finally:
        flush_standard_streams()


def answer(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: ds-rag COMMAND ...   (ds-rag COMMAND --help)\n       ds-rag --version\n")
        print("\n".join(f"  {name:10} {text}" for name, (_, text) in COMMANDS.items()))
        return 0
    if argv[0] == "--version":
        print(ds_rag.__version__)
        return 0
    forbid_pickles()

    def body() -> int:
        adopt_srun()  # a command must know its rank before it claims a folder
        check_launch(os.environ)
        return choose(COMMANDS, argv[0], "command")[0](argv[1:])

    return run_command(body, debug="--debug" in argv)


if __name__ == "__main__":
    sys.exit(main())
