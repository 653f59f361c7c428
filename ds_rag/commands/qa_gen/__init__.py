"""`ds-rag qa-gen`: its flags. The work is in command.py, which is imported when the command is called."""

from __future__ import annotations

import argparse

from ds_rag.commands.saved_run import READING, add_teacher_cache, run_together
from ds_rag.config.bounds import ITEMS, MANY, SEED, TOKENS, Number, above, inner_fraction, integer, real
from ds_rag.config.flags import Parser, add_number, add_settings

SHOWN = ("retriever", "generator", "chat_template", "max_passage_length")
SETTINGS = (  # of data, models and evaluation: what reading, searching and scoring depend on
    *SHOWN,
    *("max_query_length", "max_answer_length", "on_bad_row", "document_column", "place_column"),
    *("query_column", "answer_column", "positive_column", "prompt_template", "trust_remote_code", "load_in_4bit"),
    *("pooling", "normalize", "query_prefix", "passage_prefix", "per_device_eval_batch_size", "index_factory"),
)


def add_flags(parser: Parser) -> None:
    parser.add_argument("passages", help="the corpus to write questions about, as ds-rag chunk writes it")
    parser.add_argument("--out", required=True, help="the JSONL file of rows; generations are kept beside it")
    parser.add_argument("--overwrite", action="store_true", help="replace --out where another command wrote it")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    add_writing(parser.add_argument_group("writing"))
    add_filters(parser.add_argument_group("filters"))
    results = parser.add_argument_group("results")
    results.add_argument("--rejected", help="also write the rejected questions, with their reasons, to this file")
    results.add_argument("--eval_out", help="hold whole documents out: their rows go to this file")
    add_own_number(results, "eval_fraction", inner_fraction(), "of the rows for --eval_out (default: 0.1)", 0.1)
    results.add_argument("--json", help="also write the counts to this file")
    parser.set_defaults(run=None)
    add_settings(parser, READING, only=SETTINGS, own=SHOWN)
    add_teacher_cache(parser)


def add_writing(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--answers", choices=("extractive", "short"), default="extractive", help="extractive: a span of the passage"
    )
    add_number(group, "questions_per_passage", integer(1, 100), "questions about each passage (default: 2)", 2)
    add_number(group, "max_passages", integer(1, MANY), "ask about so many passages, drawn at random (default: all)")
    add_number(group, "min_words", integer(1, ITEMS), "ask about passages of so many words (default: 15)", 15)
    group.add_argument("--examples", help="rows with labelled passages to draw the prompt's examples from")
    add_number(group, "shots", integer(1, 32), "examples in the prompt (default: 4)", 4)
    add_own_number(group, "temperature", real(0, 100), "of the draw; first answers are the likeliest (default: 1)", 1.0)
    add_number(group, "top_p", above(0, 1), "mass of the tokens drawn from (default: 0.95)", 0.95)
    add_number(group, "max_tokens", integer(4, TOKENS), "of a question with its answer (default: 80)", 80)
    add_own_number(group, "seed", integer(0, SEED), "of all draws (default: 0)", 0)


def add_filters(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--skip_filters", default="", metavar="NAMES", help="filters to leave out, separated by commas")
    add_number(group, "max_question_words", integer(1, ITEMS), "(default: 30)", 30)
    add_number(group, "max_answer_words", integer(1, ITEMS), "(default: 12)", 12)
    add_number(group, "round_trip_k", integer(1, ITEMS), "the passage is among the first K (default: 10)", 10)
    group.add_argument(
        "--round_trip_by",
        choices=("index", "bm25", "either"),
        help="whose search must find it (default: index with --retriever, else bm25)",
    )
    add_number(group, "duplicate_above", real(0, 1), "cosine of questions that are one (default: 0.95)", 0.95)
    add_number(group, "gain_margin", real(-1e9, 1e9), "least gain by the passage, nats a token (default: 0.1)", 0.1)
    add_number(group, "gain_candidates", integer(0, ITEMS), "other passages that gain less (default: 4)", 4)


def add_own_number(group: argparse._ArgumentGroup, name: str, *given: object) -> None:
    """A number of this command that has a setting's name and another meaning; it is kept under a name of its own."""
    bounds, text, default = given
    number = Number(name, bounds)  # type: ignore[arg-type]
    group.add_argument(f"--{name}", dest=f"qa_{name}", metavar="N", type=number, default=default, help=str(text))


def main(args: argparse.Namespace) -> int:
    from ds_rag.commands.qa_gen.command import main as work

    return run_together("ds-rag qa-gen", work, args)
