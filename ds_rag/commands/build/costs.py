"""What the stages of `ds-rag build` are predicted to cost: counts, FLOPs from the models' shapes, and time.

FLOPs are those of `ds-rag plan`, with every text at its maximum length: upper bounds. Before the documents are cut, the
number of passages is guessed from the size of the files, and before questions are written, so is that of the rows. The
rate is that which earlier stages of this build reached, or else one that is assumed of the machine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_rag.commands.build.options import Wanted
from ds_rag.commands.build.stages import FREE, LABEL_FREE, LABELS, PAIRS, RECIPES, read, way_of
from ds_rag.commands.build.state import Entry
from ds_rag.commands.plan.duration import Rates, forward_flops
from ds_rag.commands.plan.hardware import CORE_MFU, CPU, DEFAULT, GPUS, MFU, this_machine
from ds_rag.commands.plan.shapes import ModelShape, read_shape
from ds_rag.commands.plan.workload import Load, Workload
from ds_rag.config import RunConfig
from ds_rag.config.schedules import AUTO, epochs_of
from ds_rag.runtime.errors import RunError, UserError

START = 12.0  # seconds until a command has loaded its libraries and models
BYTES = 4.5  # of text for a token
OF_TEXT = {".pdf": 0.05, ".docx": 0.1, ".pptx": 0.02, ".xlsx": 0.2, ".html": 0.4, ".htm": 0.4}  # of a file's bytes
READ = 1e6  # bytes of documents that are read and cut in a second
PROMPT, WRITTEN = 300, 48  # tokens of a prompt's examples, and of a question with its answer
EACH = 2  # questions about a passage
KEPT = 0.3  # of the written questions that the filters leave
SCORED = 5  # passages by which the gain of a written question is judged
AUDITED, CANDIDATES = 200, 16  # rows of an audit, passages of each
LEAST = 1e12  # FLOPs of a stage from which its time says how fast the machine is


@dataclass(frozen=True)
class Cost:
    """counts: in words. flops: None where the shape of a model is not known. seconds: None likewise."""

    counts: str
    flops: float | None = 0.0
    seconds: float | None = None


@dataclass(frozen=True)
class Sizes:
    """What is counted: passages, training rows, and the questions that are written. guessed: from sizes of files."""

    passages: int
    rows: int
    written: int
    guessed: bool


def predict(wanted: Wanted, rate: float) -> dict[str, Cost]:
    """Stage -> its cost, of every stage that may come. rate: FLOP/s."""
    size = sizes(wanted)
    shapes = [shape_of(wanted, name) for name in ("retriever", "generator")]
    work = workload(wanted)
    found = {"chunk": of_chunking(wanted), "split": Cost(f"{size.rows:,} rows", 0.0, START / 2)}
    counts = {
        "questions": f"{size.written:,} questions on {size.passages:,} passages",
        "audit": "{:,} rows x {} passages".format(*audited(wanted, size)),
        "train": f"{size.rows:,} rows, {size.passages:,} passages",
        "index": f"{size.passages:,} passages",
    }
    for name, text in counts.items():
        flops = None
        if shapes[0] is not None and shapes[1] is not None:
            flops = flops_of(name, wanted, size, work, (shapes[0], shapes[1]))
        found[name] = Cost(text, flops, None if flops is None else START + flops / rate)
    return found


def flops_of(name: str, wanted: Wanted, size: Sizes, work: Workload, shapes: tuple[ModelShape, ModelShape]) -> float:
    """Of a stage, over all ranks."""
    retriever, generator = shapes
    length, query = work.passage, work.query

    def encode(texts: float, tokens: int) -> float:
        return forward_flops(retriever, Load(texts * tokens, texts * tokens**2))

    def read_cells(cells: int) -> float:
        return forward_flops(generator, work.load_of(cells, min(cells, size.passages)))

    corpus = encode(size.passages, length)
    if name == "questions":
        asked = min(size.passages, size.written)
        tokens = length + PROMPT + WRITTEN * max(1, size.written // max(1, asked))
        prompts = Load(asked * tokens, asked * tokens**2 / 2, size.written * WRITTEN)
        return forward_flops(generator, prompts) + corpus + read_cells(size.written * SCORED)
    if name == "audit":
        rows, passages = audited(wanted, size)
        return corpus + read_cells(rows * passages)
    if name == "index":
        return corpus
    way = teaching(wanted)
    settings = wanted.settings(RECIPES[way])
    epochs = epochs_in(settings, size.rows, wanted.ranks)
    each = 3 * epochs * size.rows  # a forward and two for the backward, of every row in every epoch
    step = {
        FREE: read_cells(size.rows * int(settings.get("index_candidates", 8))) + each * encode(2, length),
        LABELS: each * encode(1, length) + epochs * 3 * read_cells(4 * size.rows),
        PAIRS: each * encode(1, length),
    }[way]
    return 2 * corpus + step + each * encode(1, query)


def epochs_in(settings: Mapping[str, Any], rows: int, ranks: int) -> float:
    """How often training reads each row."""
    usual = RunConfig().optim
    sizes = ("per_device_train_batch_size", "gradient_accumulation_steps")
    batch = ranks * math.prod(int(settings.get(name, getattr(usual, name))) for name in sizes)
    steps = max(1, rows) / batch
    if (most := int(settings.get("max_steps", usual.max_steps))) > 0:
        return most / steps
    epochs = settings.get("num_train_epochs", usual.num_train_epochs)
    return epochs_of(epochs if epochs == AUTO else float(epochs), steps)


def audited(wanted: Wanted, size: Sizes) -> tuple[int, int]:
    """(rows, passages of each) that an audit reads."""
    rows = min(size.rows, number_in(wanted, "audit", "--sample", AUDITED))
    return rows, number_in(wanted, "audit", "--candidates", CANDIDATES)


def teaching(wanted: Wanted) -> str:
    """The way of training as far as it is known."""
    try:
        return way_of(wanted).name
    except RunError:
        return FREE


def of_chunking(wanted: Wanted) -> Cost:
    count, size = measure(wanted.documents)
    return Cost(f"{count:,} files, {size / 1e6:,.1f} MB", 0.0, START / 2 + size / READ)


def measure(documents: tuple[str, ...]) -> tuple[int, float]:
    """Number and bytes of the files."""
    files = [file for path in documents for file in files_below(Path(path).expanduser())]
    return len(files), float(sum(file.stat().st_size for file in files))


def files_below(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return [f for f in place.rglob("*") if f.is_file() and not any(p.startswith(".") for p in f.parts[-3:])]


def sizes(wanted: Wanted) -> Sizes:
    """As the files that are there have them, else guesses."""
    settings = wanted.settings(LABEL_FREE)
    length = int(settings.get("max_passage_length", RunConfig().data.max_passage_length))
    passages, guessed = lines(wanted.passages), False
    if passages is None:
        files = [file for path in wanted.documents for file in files_below(Path(path).expanduser())]
        text = sum(file.stat().st_size * OF_TEXT.get(file.suffix.lower(), 1.0) for file in files)
        passages, guessed = max(1, round(text / BYTES / (0.8 * length))), True
    asked = min(passages, number_in(wanted, "qa_gen", "--max_passages", passages))
    written = asked * number_in(wanted, "qa_gen", "--questions_per_passage", EACH)
    counts, rows = read(wanted.row_counts), lines(wanted.questions)
    if counts is not None:
        rows = int(counts["train"]["rows"])
    if rows is None:
        rows, guessed = round(KEPT * written), True
    return Sizes(passages, rows, written, guessed)


def number_in(wanted: Wanted, command: str, flag: str, default: int) -> int:
    """The value of a flag among the further words for a command."""
    for word, value in itertools.pairwise((wanted.more or {}).get(command, ())):
        if word == flag and value.isdigit():
            return int(value)
    return default


def lines(file: Path) -> int | None:
    """Lines of a file with one row or passage on each; None where it is not there, or of another kind."""
    if not file.is_file() or file.suffix.lower() not in (".jsonl", ".csv", ".tsv"):
        return None
    with file.open("rb") as stream:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(1 << 20), b""))


def workload(wanted: Wanted) -> Workload:
    settings, usual = wanted.settings(LABEL_FREE), RunConfig().data
    query, passage, answer = (
        int(settings.get(f"max_{side}_length", getattr(usual, f"max_{side}_length")))
        for side in ("query", "passage", "answer")
    )
    return Workload(query=query, passage=passage, answer=answer)


def shape_of(wanted: Wanted, name: str) -> ModelShape | None:
    """None where no configuration is at hand, as of a name on a hub."""
    try:
        return read_shape(wanted.setting(name), f"--{name}", head=name == "generator")
    except UserError:
        return None


def rate_of(entries: Mapping[str, Entry], ranks: int) -> tuple[float, str]:
    """(FLOP/s, where it is from)."""
    told = [e for e in entries.values() if e.flops >= LEAST and e.exit == 0 and e.seconds > START]
    if told:
        reached = sum(e.flops for e in told) / sum(e.seconds + e.before - START for e in told)
        return reached, f"as stages of this build had it: {reached / 1e9:,.0f} GFLOP/s"
    device = this_machine() or GPUS[DEFAULT]
    precision, rates = "bf16" if device.bf16 else "fp32", Rates(device, CORE_MFU if device.name == CPU else MFU)
    several = 1 if device.name == CPU else ranks  # ranks on a processor have its cores in common
    reached = several * rates.flops(precision)
    return (
        reached,
        f"assumed: {reached / 1e9:,.0f} GFLOP/s of {several} {device.name} ({precision}, {rates.mfu:.0%} of its peak)",
    )
