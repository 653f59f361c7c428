"""`ds-rag qa-gen`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse

from ds_rag.commands.saved_run import READING, add_teacher_cache, run_together
from ds_rag.config import OWNER
from ds_rag.config.bounds import ITEMS, MANY, SEED, TOKENS, Bounds, Number, above, inner_fraction, integer, real
from ds_rag.config.flags import Parser, add_settings

SHOWN = ("retriever", "generator", "chat_template", "max_passage_length")
SETTINGS = (  # of data, models and evaluation: what reading, searching and scoring depend on
    *SHOWN,
    *("max_query_length", "max_answer_length", "on_bad_row", "document_column", "place_column"),
    *("query_column", "answer_column", "positive_column", "prompt_template", "trust_remote_code", "load_in_4bit"),
    *("pooling", "normalize", "query_prefix", "passage_prefix", "per_device_eval_batch_size", "index_factory"),
    "vector_cache",
)
ADVANCED = {
    "min_words",
    "shots",
    "seed",
    "top_p",
    "max_tokens",
    "max_question_words",
    "max_answer_words",
    "duplicate_above",
}


def add_flags(parser: Parser) -> None:
    parser.add_argument("passages", help="the corpus to write questions about")
    parser.add_argument("--out", required=True, metavar="FILE", help="the JSONL file of rows to write")
    parser.add_argument("--overwrite", action="store_true", help="replace --out if another command wrote it")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    add_writing(parser.add_argument_group("writing"))
    add_filters(parser.add_argument_group("filters"))
    results = parser.add_argument_group("results")
    results.add_argument("--rejected", metavar="FILE", help="also write rejected questions and reasons here")
    results.add_argument("--eval_out", metavar="FILE", help="the rows of held-out documents go here")
    number(results, "eval_fraction", inner_fraction(), "of the rows, for --eval_out (default: 0.1)", 0.1)
    results.add_argument("--json", metavar="FILE", help="also write the counts to this file")
    parser.set_defaults(run=None)
    add_settings(parser, READING, only=SETTINGS, own=SHOWN)
    add_teacher_cache(parser)
    parser.advanced += [action for action in parser._actions if action.dest.removeprefix("qa_") in ADVANCED]


def add_writing(group: argparse._ArgumentGroup) -> None:
    kinds = ("extractive", "short")
    group.add_argument("--answers", choices=kinds, default=kinds[0], help="extractive: spans of the passage (default)")
    number(group, "questions_per_passage", integer(1, 100), "(default: 2)", 2)
    number(group, "max_passages", integer(1, MANY), "ask about so many passages (default: all)")
    number(group, "min_words", integer(1, ITEMS), "ask about passages of so many words (default: 15)", 15)
    group.add_argument("--examples", metavar="FILE", help="rows to draw the prompt's examples from")
    number(group, "shots", integer(1, 32), "examples in the prompt (default: 4)", 4)
    number(group, "temperature", real(0, 100), "of draws; first ones are the likeliest (default: 1)", 1.0)
    number(group, "top_p", above(0, 1), "mass of the tokens drawn from (default: 0.95)", 0.95)
    number(group, "max_tokens", integer(4, TOKENS), "of a question with its answer (default: 80)", 80)
    number(group, "seed", integer(0, SEED), "of all draws (default: 0)", 0)


def add_filters(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--skip_filters", default="", metavar="NAMES", help="filters to leave out: name,name")
    number(group, "max_question_words", integer(1, ITEMS), "(default: 30)", 30)
    number(group, "max_answer_words", integer(1, ITEMS), "(default: 12)", 12)
    number(group, "round_trip_k", integer(1, ITEMS), "a search finds the passage among K (default: 10)", 10)
    group.add_argument("--round_trip_by", choices=("index", "bm25", "either"), help="which search (default: index)")
    number(group, "duplicate_above", real(0, 1), "cosine of questions that are one (default: 0.95)", 0.95)
    number(group, "gain_margin", real(-1e9, 1e9), "least gain by the passage, nats a token (default: 0.1)", 0.1)
    number(group, "gain_candidates", integer(0, ITEMS), "other passages that gain less (default: 4)", 4)


def number(group: argparse._ArgumentGroup, name: str, bounds: Bounds, text: str, default: float | None = None) -> None:
    """Adds a numeric flag. Where a setting has the same name and another meaning, the value is kept as `qa_NAME`."""
    dest, value = f"qa_{name}" if name in OWNER else name, Number(name, bounds)
    group.add_argument(f"--{name}", dest=dest, metavar="N", type=value, default=default, help=text.replace("%", "%%"))


def main(args: argparse.Namespace) -> int:
    from ds_rag.commands.qa_gen.command import main as work

    return run_together("ds-rag qa-gen", work, args)
