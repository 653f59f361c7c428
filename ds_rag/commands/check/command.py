"""`ds-rag check DATA`: reports bad rows, duplicates, labels, lengths, how many texts would be truncated, and the
overlap of evaluation and training rows. Opens the tokenizers of models that are named, but no weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from ds_rag.config import DataConfig, ModelConfig, RunConfig, build
from ds_rag.config.flags import settings_of
from ds_rag.data.bad_rows import MAX_LISTED, Faults, Reading, say_notices
from ds_rag.data.data_settings import check_described, columns_of, corpus_source
from ds_rag.data.dataset import CHUNK, build_table
from ds_rag.data.formats import Passage, Row, contains_corpus, passages_of, scan_corpus, scan_rows
from ds_rag.data.matching import texts_of
from ds_rag.data.prompt import Prompt, make_prompt
from ds_rag.data.statistics import documents, labels, overlap, per_row, repeated_queries, repeated_texts, spread
from ds_rag.models.from_settings import PADDING_SIDE, model_folder, retriever_texts
from ds_rag.models.tokenizer import open_tokenizer
from ds_rag.run.settle_names import settle_names
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.library_messages import quiet_libraries
from ds_rag.runtime.output_places import check_json, write_json

UNCUT = 1 << 30
Measure = Callable[[list[str]], list[int]]  # texts -> their lengths
POINTS = ("min", "median", "95%", "max")


def main(args: argparse.Namespace) -> int:
    """Runs the command. Returns 1 if there are bad rows, a file without rows, or data that training refuses."""
    check_json(args.json, ("rows", "lengths", "bad_rows"))
    quiet_libraries()
    console = Console()
    given = settings_of(args)
    config = build(given, frozenset(given))
    settle_names(config, console.say)
    data = config.data
    parts: dict[str, dict[str, Any]] = {}
    source = corpus_source(data) or (data.train_data if contains_corpus(data.train_data, "DATA") else None)
    rows, parts["rows"] = check_rows(data.train_data, data, "--train_data", source)
    evaluation: list[Row] = []
    if data.eval_data:
        evaluation, parts["eval_data"] = check_rows(data.eval_data, data, "--eval_data", source)
    corpus: list[Passage] = []
    if source:
        corpus, faults = scan_corpus(source, "--corpus", columns=columns_of(data))
        parts["corpus"] = of_faults(faults, len(corpus)) | {"counts": repeated_texts(corpus)}
    check_described(columns_of(data), rows + evaluation, corpus)
    shared = overlap(rows, evaluation) if evaluation else None
    lengths = measure_all(rows + evaluation, corpus, config, console)
    for name, part in parts.items():
        show_part(name, part, console)
    show_lengths(lengths, console)
    between, refused, named = examine_together(rows, evaluation, corpus)
    show_documents(named, console)
    say_notices(between, console)
    if refused:
        console.say(refused, style="red")
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
    write_json(args.json, {**parts, **found, "notices": between, "refused": refused})
    return 1 if wrong else 0


def examine_together(
    rows: Sequence[Row], evaluation: Sequence[Row], corpus: Sequence[Passage]
) -> tuple[list[str], str | None, dict[str, dict[str, float]]]:
    """(notices, error, documents): what training would say about rows and corpus together, None as the error where
    training accepts them, and the documents of both sets of rows."""
    try:
        table = build_table(corpus or passages_of([*rows, *evaluation]), rows, evaluation)
    except UserError as error:
        return [], str(error), {}
    parts = {"rows": table.train} | ({"eval_data": table.evaluation} if evaluation else {})
    return table.notices, None, {name: documents(map(table.row_document, part)) for name, part in parts.items()}


def check_rows(path: str, data: DataConfig, flag: str, corpus: str | None) -> tuple[list[Row], dict[str, Any]]:
    """(good rows of a file, findings about the file). Passages are required if there is a column for them and no
    corpus; answers are required in training rows that have a column for them."""
    need_answers = None if flag == "--train_data" else False
    reading = Reading(scores=None)
    rows, faults = scan_rows(path, columns_of(data), flag, False if corpus else None, need_answers, reading)
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
    rows: Sequence[Row], corpus: Sequence[Passage], config: RunConfig, console: Console
) -> dict[str, dict[str, dict[str, Any]]]:
    """Side -> unit -> statistics of lengths, and how many texts are truncated at which length. Each passage of corpus
    and rows counts once."""
    texts = {
        "query": [row.query for row in rows],
        "passage": sorted({passage.text for passage in corpus} | texts_of(rows)),
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
    ]
    console.table("lengths", ["of", "texts", *(name.replace("_", " ") for name in columns)], lines)


def cell(values: dict[str, Any], name: str) -> str:
    return f"{values[name]:g}" if isinstance(values.get(name), float) else str(values.get(name, ""))
