"""`ds-rag errors RUN`: the questions that an evaluation got wrong, from its table of results per question.

A likely false negative is a passage that stands above the labelled one and contains an answer: it may be as good, and
only not be labelled. Such questions are listed first, by how sure the generator is of those passages once it is told
the answer, where the table knows that; then the others, the lowest ranks first.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from ds_rag.config.bounds import ITEMS, integer
from ds_rag.config.flags import Parser, add_number
from ds_rag.runtime.console import EMPTY, Console
from ds_rag.runtime.errors import UserError

if TYPE_CHECKING:
    from ds_rag.evaluation.per_question import PerQuestion

FIGURES = ("recall@1", "answer_in_top@1", "exact_match")  # the first that the table has is the default
KINDS = ("missed", "false_negatives", "found")
SHOWN, WIDTH = 3, 160  # passages of a question, and characters of a text


def add_flags(parser: Parser) -> None:
    parser.add_argument("table", help="a run's folder (its evaluation at the end), or FILE.questions.parquet")
    parser.add_argument("--only", choices=KINDS, default="missed", help="which questions; missed: false negatives too")
    parser.add_argument("--figure", help=f"a question is missed where this is below 1; default {FIGURES[0]}")
    add_number(parser, "limit", integer(0, ITEMS), "questions that are shown; 0: all (default: 20)", 20)
    parser.add_argument("--json", help="write the list to this file too")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")


def main(args: argparse.Namespace) -> int:
    from ds_rag.evaluation.per_question import read_per_question
    from ds_rag.runtime.output_places import check_json, write_json

    check_json(args.json, ("questions", "figure"))
    table = read_per_question(table_of(args.table))
    figure = choose_figure(table, args.figure)
    every = list_questions(table, figure)
    wanted = {"missed", "false_negatives"} if args.only == "missed" else {args.only}
    chosen = [entry for entry in every if entry["kind"] in wanted]
    listed = chosen[: args.limit or None]
    console = Console()
    counts = {kind: sum(entry["kind"] == kind for entry in every) for kind in KINDS}
    wrong = counts["missed"] + counts["false_negatives"]
    said = f"{wrong} of {len(every)} questions missed by {figure}"
    if any(entry.get("gold") for entry in every):
        said += f", of {counts['false_negatives']} of them a passage above the labelled one contains an answer"
    console.say(f"{said}; {len(table.ids) - len(every)} without a value")
    for entry in listed:
        show(entry, console)
    if len(listed) < len(chosen):
        console.say(f"... and {len(chosen) - len(listed)} more (--limit 0 shows all)")
    write_json(args.json, {"figure": figure, "counts": counts, "signature": table.signature, "questions": listed})
    return 0


def table_of(path: str) -> Path:
    """The file that the argument means. Raises UserError for a run that has left none."""
    place = Path(path)
    if not place.is_dir():
        return place
    table = place / "after.questions.parquet"
    if not table.is_file():
        raise UserError(
            f"{place}: no results per question",
            expected=f"{table.name}, which a run with held-out rows leaves at its end",
            fix=f"ds-rag evaluate --run {place} --json scores.json, then ds-rag errors scores.json.questions.parquet",
        )
    return table


def choose_figure(table: PerQuestion, wanted: str | None) -> str:
    """The wanted figure, or the first usual one. Raises UserError where the table does not have it."""
    found = wanted or next((name for name in FIGURES if name in table.metrics), None)
    if found not in table.metrics:
        raise UserError("--figure: not in the table", found=found, expected=" | ".join(table.metrics) or "a figure")
    return str(found)


def list_questions(table: PerQuestion, figure: str) -> list[dict[str, Any]]:
    """What is known of each question that has a value, likely false negatives first, then what was missed, then what
    was found. Keys: those of the details, and `kind`, `value`, `above` (ids of what stood above the labelled passage),
    `suspects` (ids of those among them that contain an answer) and `suspicion` (their posterior; None: not known)."""
    entries = []
    for n, (id_, value) in enumerate(zip(table.ids, table.metrics[figure].tolist(), strict=True)):
        if value == value:  # not NaN
            details = {name: values[n] for name, values in table.details.items()}
            entries.append(entry_of(id_, value, details, table.retrieved[n]))
    order = {"false_negatives": 0, "missed": 1, "found": 2}
    return sorted(
        entries,
        key=lambda entry: (order[entry["kind"]], -(entry["suspicion"] or 0.0), -(entry["gold_rank"] or 1 << 30)),
    )


def entry_of(id_: str, value: float, details: dict[str, Any], retrieved: list[str]) -> dict[str, Any]:
    """One question of the list. A suspect needs a labelled passage that it stands above."""
    gold, rank = details.get("gold") or [], details.get("gold_rank")
    above = [p for p in retrieved[: rank - 1 if rank else len(retrieved)] if p not in gold] if gold else []
    contains = dict(zip(retrieved, details.get("answer_in") or [], strict=False))
    suspects = [p for p in above if contains.get(p)]
    posterior = dict(zip(retrieved, details.get("posterior") or [], strict=False))
    suspicion = sum(posterior.get(p, 0.0) for p in suspects) if posterior and suspects else None
    kind = "found" if value >= 1 else "false_negatives" if suspects else "missed"
    more = {"above": above[: len(contains) or SHOWN], "suspects": suspects, "suspicion": suspicion}
    return {"id": id_, "kind": kind, "value": value, "gold_rank": rank, **details, **more, "retrieved": retrieved[:10]}


def show(entry: dict[str, Any], console: Console) -> None:
    """One question, for people to read."""
    rank = entry["gold_rank"]
    labelled = f"at rank {rank}" if rank else "not found" if entry.get("gold") else ""
    place = f"; labelled passage {labelled}" if labelled else ""
    console.say("")
    console.say(f"{entry['id']}   {entry.get('query', '')}   ({entry['kind'].replace('_', ' ').rstrip('s')}{place})")
    wanted = " | ".join(entry.get("answers") or [])
    answer = f"   answered: {entry['answer'] or EMPTY}" if entry.get("answer") is not None else ""
    if wanted or answer:
        console.say(f"    wanted: {wanted}{answer}")
    inside, posterior = entry.get("answer_in") or [], entry.get("posterior") or []
    texts = entry.get("passages") or []
    for n, passage in enumerate(entry["retrieved"][:SHOWN]):
        marks = ["labelled"] if passage in (entry.get("gold") or []) else []
        marks += ["contains an answer"] if n < len(inside) and inside[n] else []
        marks += [f"posterior {posterior[n]:.2f}"] if n < len(posterior) else []
        text = shorten(texts[n], WIDTH, placeholder=" ...") if n < len(texts) else ""
        sources = [*(entry.get("sources") or []), *[""] * SHOWN]
        where = f", {sources[n]}" if sources[n] else ""
        console.say(f"    {n + 1}. {passage}{where}{' (' + ', '.join(marks) + ')' if marks else ''}: {text}")
    if entry.get("gold_text") and (rank is None or rank > SHOWN):
        console.say(f"    labelled: {shorten(entry['gold_text'], WIDTH, placeholder=' ...')}")
