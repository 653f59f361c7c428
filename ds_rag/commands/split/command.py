"""`ds-rag split ROWS --corpus PASSAGES --out FOLDER`: whole documents of the rows are held out, and rows whose labelled
passages are no longer in the corpus are named and left out.

    FOLDER/train.jsonl, FOLDER/eval.jsonl   the rows, in the names of columns that every command knows
    FOLDER/folds.json                       which documents are held out: a later call keeps it, and trains on new ones
    FOLDER/rows.json                        the counts, and which rows were left out
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ds_rag.commands.split import FRACTION
from ds_rag.config import build
from ds_rag.config.flags import settings_of
from ds_rag.data.bad_rows import say_notices
from ds_rag.data.data_settings import check_described, columns_of, reading_of
from ds_rag.data.formats import Passage, Row, read_corpus, read_rows
from ds_rag.data.matching import find_in_corpus
from ds_rag.data.splits import FRACTION as BY_FRACTION
from ds_rag.data.splits import HELD_OUT, LEAST, Split, SplitOptions, Unit, split_of_json, split_rows
from ds_rag.data.statistics import normalised
from ds_rag.runtime import json_files
from ds_rag.runtime.atomic_files import write_complete
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_place, writing

TRAIN, EVAL, SPLIT, SUMMARY = "train.jsonl", "eval.jsonl", "folds.json", "rows.json"
NAMED = 20  # rows that are named on the console and in rows.json
GONE = "(not in the corpus) "  # what the text of a passage begins with of which only the id is known
MOST_LOST = 0.5  # of the labelled rows: above it, the labels are of other passages than these


class ById(dict[str, Passage]):
    """id -> passage. One that the corpus lacks is a text that it lacks: its row is read, and then named as lost."""

    def __missing__(self, id_: str) -> Passage:
        return Passage(id_, f"{GONE}{id_}")


@dataclass
class Rows:
    """Rows with their labels as texts of the corpus. lost: rows left out, since none of their labelled passages is in
    the corpus. others: how many rows were kept without such labels."""

    kept: list[Row]
    lost: list[Row]
    others: int = 0


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    given = settings_of(args)
    config = build({"eval_fraction": FRACTION} | given, frozenset(given))
    data = config.data
    if data.corpus is None:
        raise UserError("ds-rag split: no passages", expected="--corpus FILE, in which the rows' labels are looked for")
    out, console, reading = check_place(args.out, "--out"), Console(), reading_of(data)
    if out.exists() and not out.is_dir():
        raise UserError("--out: not a folder", found=out, expected="a new folder, or one of ds-rag split")
    columns = columns_of(data)
    corpus = read_corpus(data.corpus, "--corpus", reading, columns)
    reading.corpus_by_id = lambda: ById((passage.id, passage) for passage in corpus)
    rows = read_rows(data.train_data, columns, "DATA", False, False, reading, data.max_train_samples)
    held_out: list[Row] = []
    if data.eval_data:
        most = data.max_eval_samples
        held_out = read_rows(data.eval_data, columns, "--eval_data", False, False, reading, most)
    check_described(columns, [*rows, *held_out], corpus)
    say_notices(reading.notices, console)
    parts = [with_labels(part, corpus, args.ignore_labels, flag) for part, flag in ((rows, "DATA"), (held_out, ""))]
    if held_out:
        split, train, evaluation = None, *without_asked(parts[0].kept, parts[1].kept)
    else:
        fraction = data.eval_fraction if "eval_fraction" in config.explicit else None
        split, train, evaluation = divide(parts[0].kept, corpus, fraction, out, console)
    evaluation = evaluation[: data.max_eval_samples]
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / TRAIN, train)
    if evaluation:
        write_rows(out / EVAL, evaluation)
    else:
        (out / EVAL).unlink(missing_ok=True)
    if split is not None:
        write_complete(out / SPLIT, json.dumps(split.to_json(), indent=1, sort_keys=True) + "\n")
    lost = [row for part in parts for row in part.lost]
    summary = summarise(train, evaluation, lost, parts[0].others + parts[1].others)
    with writing(out / SUMMARY) as stream:
        stream.write(json.dumps(summary, indent=1) + "\n")
    show(summary, split, out, console)
    return 0


def with_labels(rows: Sequence[Row], corpus: Sequence[Passage], ignore_labels: bool, flag: str) -> Rows:
    """The rows with those of their labelled passages that the corpus has, as it has them. Raises UserError where most
    labelled rows have none of theirs there: the labels are of other passages; ignore_labels keeps such rows without."""
    number: dict[str, int] = {}
    for passage in corpus:
        number.setdefault(passage.text, len(number))
    texts, meant = list(number), find_in_corpus(corpus, number, rows)

    def known(labelled: Sequence[str]) -> tuple[str, ...]:
        places = (n for text in labelled for n in ([number[text]] if text in number else meant.get(text, ())))
        return tuple(texts[n] for n in dict.fromkeys(places))

    kept, lost, labelled = [], [], 0
    for row in rows:
        labelled += bool(row.positives)
        positives = known(row.positives)
        if row.positives and not positives:
            lost.append(row)
        else:
            grades = row.grades if positives == row.positives else ()
            passages, negatives = (
                tuple(text for text in texts_of if not text.startswith(GONE))
                for texts_of in (row.passages, row.negatives)
            )
            kept.append(replace(row, positives=positives, grades=grades, passages=passages, negatives=negatives))
    if len(lost) <= MOST_LOST * labelled:
        return Rows(kept, lost)
    if ignore_labels:
        bare = {row.where: replace(row, positives=(), grades=(), negatives=(), judged=False) for row in lost}
        order = {row.where: row for row in kept} | bare
        return Rows([order[row.where] for row in rows], [], len(lost))
    raise UserError(
        f"{flag or '--eval_data'}: the labelled passages are not passages of the corpus",
        found=f"{len(lost)} of {labelled} labelled rows have none there, the first at {lost[0].where}",
        expected="passages of --corpus, as their texts or ids",
        fix="label rows with passages of this corpus, or --ignore_labels keeps the questions without these labels",
    )


def without_asked(rows: list[Row], evaluation: list[Row]) -> tuple[list[Row], list[Row]]:
    """Training rows without those that ask what an evaluation row asks; evaluation rows as they are."""
    asked = {normalised(row.query) for row in evaluation}
    return [row for row in rows if normalised(row.query) not in asked], evaluation


def divide(
    rows: list[Row], corpus: Sequence[Passage], fraction: float | None, out: Path, console: Console
) -> tuple[Split | None, list[Row], list[Row]]:
    """(the split, training rows, held-out rows), documents undivided. An earlier split of this folder is kept.

    fraction: as it was asked for, 0 for none; None: FRACTION, or more where that are too few rows to measure on, and
    none where they are too few for any. Raises UserError where what was asked for is not possible.
    """
    if fraction == 0:
        return None, rows, []
    known = None
    if (file := out / SPLIT).exists():
        known = split_of_json(json_files.read_json(file, dict), str(file))
    usual = max(FRACTION, math.ceil(100 * LEAST / len(rows)) / 100) if rows else 1.0
    wanted = SplitOptions(BY_FRACTION, 2, HELD_OUT, usual if fraction is None else fraction)
    if known and (fraction is None or known.wanted == wanted):
        wanted = known.wanted
    else:
        known = None
    documents = {passage.text: passage.document for passage in corpus if passage.document}
    units = [Unit(document_of(row, documents), row.query, row.positives) for row in rows]
    try:
        split, folds = split_rows(units, wanted, known)
    except UserError as error:
        if fraction is not None:
            raise
        why = f"{error.found}; --eval_data FILE takes rows of their own"
        console.say(f"warning: no rows are held out, so nothing is measured: {why}", style="bold yellow")
        return None, rows, []
    pairs = list(zip(rows, folds, strict=True))
    return split, [row for row, fold in pairs if fold != HELD_OUT], [row for row, fold in pairs if fold == HELD_OUT]


def document_of(row: Row, documents: Mapping[str, str | None]) -> str | None:
    """The row's own document, else that of its first labelled passage."""
    if row.origin.document is not None or not row.positives:
        return row.origin.document
    return documents.get(row.positives[0])


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    with writing(file) as stream:
        stream.writelines(json.dumps(as_object(row), ensure_ascii=False) + "\n" for row in rows)


def as_object(row: Row) -> dict[str, Any]:
    """A row as a JSON object that every command reads as this row."""
    texts = {name: list(getattr(row, name)) for name in ("answers", "positives", "passages", "negatives")}
    written = {"id": row.id, "query": row.query, **texts, **row.origin._asdict()}
    return {name: value for name, value in written.items() if value}


def summarise(train: list[Row], evaluation: list[Row], lost: list[Row], others: int) -> dict[str, Any]:
    """What rows.json holds."""
    parts = {"train": train, "eval": evaluation}
    counts = {
        name: {"rows": len(rows), "labelled": sum(bool(row.positives) for row in rows)} for name, rows in parts.items()
    }
    named = [{"id": row.id, "query": row.query, "where": row.where} for row in lost[:NAMED]]
    return counts | {"lost": len(lost), "lost_rows": named, "labels_ignored": others}


def show(summary: dict[str, Any], split: Split | None, out: Path, console: Console) -> None:
    if summary["lost"]:
        console.say(
            f"warning: {summary['lost']} rows are left out, since none of their labelled passages is in the corpus:",
            style="bold yellow",
        )
        for row in summary["lost_rows"]:
            console.say(f"  {row['where']}: {row['id']}  {row['query'][:80]}")
    if summary["labels_ignored"]:
        console.say(f"note: {summary['labels_ignored']} rows are kept without their labels, which the corpus lacks")
    if split is not None:
        console.say(f"note: {split.summary(summary['train']['rows'], summary['eval']['rows'])}")
    table = [[name, str(summary[name]["rows"]), str(summary[name]["labelled"])] for name in ("train", "eval")]
    console.table(f"rows in {out}", ["part", "rows", "labelled"], table)
