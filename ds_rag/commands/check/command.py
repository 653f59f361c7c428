"""`ds-rag check DATA`, or a corpus alone: reports bad rows, duplicates, labels, lengths, how many texts would be
truncated, and the overlap of evaluation and training rows. Opens the tokenizers of models that are named, but no
weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ds_rag.config import DataConfig, ModelConfig, RunConfig, build
from ds_rag.config.flags import settings_of
from ds_rag.data.bad_rows import MAX_LISTED, WARNING, Faults, Reading, say_notices
from ds_rag.data.by_id import ids_of
from ds_rag.data.data_settings import check_described, columns_of, corpus_source
from ds_rag.data.dataset import CHUNK, build_table
from ds_rag.data.formats import Passage, Row, contains_corpus, passages_of, scan_corpus, scan_rows
from ds_rag.data.lost_labels import lost_labels, lost_note
from ds_rag.data.matching import texts_of
from ds_rag.data.near_repeats import almost_repeated
from ds_rag.data.prompt import Prompt, make_prompt
from ds_rag.data.statistics import documents, labels, overlap, per_row, repeated_queries, repeated_texts, spread
from ds_rag.evaluation.power import needed_line
from ds_rag.models.from_settings import PADDING_SIDE, model_folder, retriever_texts
from ds_rag.models.tokenizer import open_tokenizer
from ds_rag.run.settle_names import settle_names
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.library_messages import quiet_libraries
from ds_rag.runtime.output_places import check_json, write_json

UNCUT = 1 << 30
LOUD = 10  # per cent of the passages that are truncated, from which it is a warning
ById = Callable[[], Mapping[str, Passage]]  # gives id -> passage
Measure = Callable[[list[str]], list[int]]  # texts -> their lengths
POINTS = ("min", "median", "95%", "max")


def main(args: argparse.Namespace) -> int:
    """Runs the command. Returns 1 if there are bad rows, a file without rows, or data that training refuses."""
    check_json(args.json, ("lengths", "bad_rows", "notices"))
    quiet_libraries()
    console = Console()
    given = settings_of(args)
    config = build(given, frozenset(given))
    settle_names(config, console.say)
    data = config.data
    if "train_data" not in given and (data.corpus is None or data.eval_data is not None):
        raise UserError("nothing to check", expected="rows (DATA), or --corpus FILE by itself", fix="ds-rag check DATA")
    read = read_all(data, "train_data" in given)
    rows, evaluation, corpus, parts = read.rows, read.evaluation, read.corpus, read.parts
    check_described(columns_of(data), rows + evaluation, corpus)
    shared = overlap(rows, evaluation) if evaluation else None
    together = examine_together(rows, evaluation, corpus) if "rows" in parts else Together()
    passages = together.texts or sorted({passage.text for passage in corpus} | texts_of(rows + evaluation))
    lengths = measure_all(rows + evaluation, passages, config, console)
    for name, part in parts.items():
        show_part(name, part, console)
    show_lengths(lengths, console)
    between, refused, named = together.notices + too_long(lengths), together.refused, together.documents
    show_documents(named, console)
    say_notices([*between, *together.needed], console)
    if refused:
        console.say(refused, style="red")
    lost = lost_labels(rows + evaluation, corpus) if corpus and not refused else []
    if lost:
        console.say(f"note: {lost_note(lost, sum(bool(row.positives) for row in rows + evaluation))}", style="yellow")
    if shared:
        lines = [[what, str(shared[what]), str(shared[f"of {what}"])] for what in ("queries", "labelled passages")]
        console.table("evaluation", ["what", "in training too", "of"], lines)
    bad = sum(part["bad_rows"] for part in parts.values())
    empty = [name for name, part in parts.items() if not part["good"] and not part["bad_rows"]]
    verdict = f"{bad or 'no'} bad {'row' if bad == 1 else 'rows'}"
    verdict += "".join(f"; {name.replace('_', ' ')}: nothing in {parts[name]['path']}" for name in empty)
    verdict += "; training refuses them, see above" if refused else ""
    wrong = bool(bad or empty or refused)
    console.say(verdict, style="red" if wrong else "green")
    found = {"documents": named, "lengths": lengths, "overlap": shared, "bad_rows": bad, "empty": empty}
    found |= {"lost": [row.id for row in lost]}
    found |= {"questions": together.needed, "notices": between, "refused": refused}
    write_json(args.json, {**parts, **found})
    return 1 if wrong else 0


@dataclass
class Read:
    """What was read, and what was found in each file."""

    rows: list[Row] = field(default_factory=list)
    evaluation: list[Row] = field(default_factory=list)
    corpus: list[Passage] = field(default_factory=list)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_all(data: DataConfig, with_rows: bool) -> Read:
    """The corpus, which rows may name by id, and the rows. Parts are in the order rows, eval_data, corpus."""
    found, of_corpus, by_id = Read(), None, None
    source = corpus_source(data) or (
        data.train_data if with_rows and contains_corpus(data.train_data, "DATA") else None
    )
    if source:
        found.corpus, faults = scan_corpus(source, "--corpus", columns=columns_of(data))
        of_corpus = of_faults(faults, len(found.corpus)) | {"counts": of_passages(found.corpus)}
        passages = ids_of(found.corpus)
        by_id = lambda: passages  # noqa: E731
    if with_rows:
        found.rows, found.parts["rows"] = check_rows(data.train_data, data, "--train_data", by_id)
    if data.eval_data:
        found.evaluation, found.parts["eval_data"] = check_rows(data.eval_data, data, "--eval_data", by_id)
    if of_corpus is not None:
        found.parts["corpus"] = of_corpus
    return found


def of_passages(corpus: Sequence[Passage]) -> dict[str, int]:
    """Counts of a corpus."""
    return {
        **repeated_texts(corpus),
        "almost repeated": almost_repeated([passage.text for passage in corpus]),
        "with a title": sum(bool(passage.lead) for passage in corpus),
        "documents": len({passage.document for passage in corpus if passage.document is not None}),
    }


def too_long(lengths: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """A notice for each model that reads passages only in part."""
    notices = []
    for unit, found in lengths["passage"].items():
        if found.get("cut"):
            part = 100 * found["cut"] / found["texts"]
            limit = f"--max_passage_length {found['cut_at']}, in {unit}"
            few = f"{found['cut']} of {found['texts']} passages ({part:.0f} %) are longer than {limit}"
            notices.append(f"{WARNING * (part >= LOUD)}{few}: their ends are not read")
    return notices


@dataclass
class Together:
    """What rows and corpus are together. notices, refused: what training would say of them, None where it accepts them.
    documents: of both sets of rows. needed: how many questions show a difference of two systems, one line or none.
    texts: of all passages, those of rows that the corpus has with its title counted once; empty where not known."""

    notices: list[str] = field(default_factory=list)
    refused: str | None = None
    documents: dict[str, dict[str, float]] = field(default_factory=dict)
    needed: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def examine_together(rows: Sequence[Row], evaluation: Sequence[Row], corpus: Sequence[Passage]) -> Together:
    try:
        table = build_table(corpus or passages_of([*rows, *evaluation]), rows, evaluation)
    except UserError as error:
        return Together(refused=str(error))
    parts = {"rows": table.train} | ({"eval_data": table.evaluation} if evaluation else {})
    named = {name: documents(map(table.row_document, part)) for name, part in parts.items()}
    measured = [row for row in table.evaluation or table.train if row.positives or row.judged]
    what = "evaluation rows with labels" if evaluation else "rows with labels, if all of them were held out"
    line, few = needed_line([table.cluster_of(row) for row in measured], what)
    needed = [f"{WARNING * (few and bool(evaluation))}{line}"] if measured else []
    return Together(table.notices, None, named, needed, table.texts)


def check_rows(path: str, data: DataConfig, flag: str, by_id: ById | None) -> tuple[list[Row], dict[str, Any]]:
    """(good rows of a file, findings about the file). Passages are required if there is a column for them and no
    corpus; answers are required in training rows that have a column for them. by_id: of a corpus, if there is one."""
    need_answers = None if flag == "--train_data" else False
    reading = Reading(scores=None, corpus_by_id=by_id)
    rows, faults = scan_rows(path, columns_of(data), flag, False if by_id else None, need_answers, reading)
    return rows, of_faults(faults, len(rows)) | {
        "counts": labels(rows) | repeated_queries(rows),
        "per_row": per_row(rows),
    }


def of_faults(faults: Faults, good: int) -> dict[str, Any]:
    return {
        "path": faults.path,
        "good": good,
        "merged": faults.merged,
        "bad_rows": len(faults.places),
        "unreadable_from_there": faults.broken,
        "listed": faults.listed(),
        "notices": faults.reading.notices,
    }


def measures(config: RunConfig) -> tuple[dict[str, dict[str, Measure]], dict[str, dict[str, int]]]:
    """(side of a text -> unit -> function that measures lengths; unit -> side -> length at which it is truncated)."""
    sides: dict[str, dict[str, Measure]] = {
        side: {
            "characters": lambda texts: list(map(len, texts)),
            "words": lambda texts: [len(t.split()) for t in texts],
        }
        for side in ("query", "passage", "answer")
    }
    cuts: dict[str, dict[str, int]] = {}
    model, data = config.model, config.data
    if names_a_model("retriever", config):
        tokenizer, settings = retriever_texts(model, data)
        cuts["retriever tokens"] = {"query": settings.max_query_length, "passage": settings.max_passage_length}
        for side, prefix in (("query", settings.query_prefix), ("passage", settings.passage_prefix)):
            sides[side]["retriever tokens"] = lambda texts, prefix=prefix: [  # type: ignore[misc]
                len(ids) for ids in tokenizer([prefix + text for text in texts])["input_ids"]
            ]
    if names_a_model("generator", config):
        prompt = prompt_of(model)
        unit = "generator tokens"
        cuts[unit] = {side: getattr(data, f"max_{side}_length") for side in sides}
        for side in sides:
            sides[side][unit] = lambda texts, side=side: [  # type: ignore[misc]
                prompt.own_length(side, ids) for ids in prompt.encode(side, texts, UNCUT)
            ]
    return sides, cuts


def names_a_model(model: str, config: RunConfig) -> bool:
    """Whether a model folder is named, so that there is a tokenizer: that of a config:FILE is trained by the run."""
    return model in config.explicit and not getattr(config.model, model).startswith("config:")


def prompt_of(model: ModelConfig) -> Prompt:
    folder = model_folder(model.generator, "--generator", model.trust_remote_code)
    tokenizer = open_tokenizer(folder, PADDING_SIDE["--generator"], model.trust_remote_code)
    return make_prompt(model, tokenizer)


def measure_all(
    rows: Sequence[Row], passages: list[str], config: RunConfig, console: Console
) -> dict[str, dict[str, dict[str, Any]]]:
    """Side -> unit -> statistics of lengths, and how many texts are truncated at which length."""
    texts = {
        "query": [row.query for row in rows],
        "passage": passages,
        "answer": [answer for row in rows for answer in row.answers],
    }
    sides, cuts = measures(config)
    found: dict[str, dict[str, dict[str, Any]]] = {side: {} for side in texts}
    with console.progress(sum(map(len, texts.values())), "measuring", unit="text") as meter:
        for side, several in texts.items():
            lengths: dict[str, list[int]] = {unit: [] for unit in sides[side]}
            for start in range(0, len(several), CHUNK):
                chunk = several[start : start + CHUNK]
                for unit, measure in sides[side].items():
                    lengths[unit] += measure(chunk)
                meter.advance(len(chunk))
            for unit, numbers in lengths.items():
                found[side][unit] = {"texts": len(numbers), **spread(numbers)}
                if (limit := cuts.get(unit, {}).get(side)) is not None:
                    found[side][unit] |= {"cut_at": limit, "cut": sum(n > limit for n in numbers)}
    return found


def show_part(name: str, part: dict[str, Any], console: Console) -> None:
    """Prints the findings about one file, bad rows first."""
    where = f"{name.replace('_', ' ')}: {part['path']}"
    if part["listed"]:
        more = f", the first {MAX_LISTED}" if part["bad_rows"] > MAX_LISTED else ""
        console.say(f"{where}: {part['bad_rows']} bad{more}", style="red")
        for message in part["listed"]:
            console.say(f"  {message}")
        if part["unreadable_from_there"]:
            console.say("  what follows the last of these could not be read", style="red")
    say_notices(part["notices"], console)
    counts = {"good": part["good"], "bad": part["bad_rows"], "repeated and merged": part["merged"]} | part["counts"]
    console.table(where, ["what", "count"], [[what, str(count)] for what, count in counts.items()])
    if "per_row" in part:
        lines = [[what, *(cell(values, p) for p in POINTS)] for what, values in part["per_row"].items()]
        console.table("in a row", ["what", *POINTS], lines)


def show_documents(named: dict[str, dict[str, float]], console: Console) -> None:
    """Nothing where no row has a document."""
    if any(counts["documents"] for counts in named.values()):
        lines = [[name.replace("_", " "), *(f"{n:g}" for n in counts.values())] for name, counts in named.items()]
        console.table("documents", ["of", *next(iter(named.values()))], lines)


def show_lengths(lengths: dict[str, dict[str, dict[str, Any]]], console: Console) -> None:
    columns = (*POINTS, "cut_at", "cut")
    lines = [
        [f"{side}, {unit}", str(found["texts"]), *(cell(found, name) for name in columns)]
        for side, units in lengths.items()
        for unit, found in units.items()
        if found["texts"]
    ]
    console.table("lengths", ["of", "texts", *(name.replace("_", " ") for name in columns)], lines)


def cell(values: dict[str, Any], name: str) -> str:
    return f"{values[name]:g}" if isinstance(values.get(name), float) else str(values.get(name, ""))
