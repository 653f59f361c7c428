"""The stages of `ds-rag build`, as a table: each is a `ds-rag` command line that could be typed by hand, with the
files that it reads and writes. What a stage does may depend on what earlier ones left: so each is made when due."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ds_rag.commands.build.options import Wanted, flags
from ds_rag.commands.split import COLUMNS
from ds_rag.runtime.errors import RunError, UserError

LABEL_FREE, REAL_ENCODER = "ds_configs/recipes/label_free.yaml", "ds_configs/recipes/real_encoder.yaml"
# Settings that say how texts are read: the same in every command that has them.
TEXTS = (
    *("max_query_length", "max_passage_length", "max_answer_length", "query_prefix", "passage_prefix"),
    *("prompt_template", "chat_template", "prompt_version", "pooling", "normalize", "temperature", "lexical_prior"),
    *("trust_remote_code", "load_in_4bit", "per_device_eval_batch_size", "index_factory"),
)
MODELS = ("retriever", "generator")
# Ways of training, with their recipes.
FREE, LABELS, PAIRS = "label_free", "labels", "pairs"
RECIPES = {FREE: LABEL_FREE, LABELS: REAL_ENCODER, PAIRS: REAL_ENCODER}
PAIRS_ALONE = {"objective": "infonce", "contrastive_weight": "0", "refresh_index": "0"}
Words = tuple[str, ...]
PRETRAINED_RATE = 2e-5  # of a pretrained generator that is trained: the recipe's is for a new one


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        words: the command line after `ds-rag`.
        inputs: files, folders, and names of models: if one changes, the stage is run again.
        outputs: what it leaves; if one is missing, it is run again.
        skip: why there is nothing to run; "" if there is.
        always: its command finds out itself what has changed, so it is run at every call.
        partial: with exit code 1 and this file written, it has done what it could, such as all readable documents.
    """

    name: str
    title: str
    words: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[Path, ...] = ()
    skip: str = ""
    always: bool = False
    partial: Path | None = None
    ranks: int = 1


@dataclass(frozen=True)
class Way:
    """How the retriever is trained, and why so. known: False if that depends on what is not there yet."""

    name: str
    why: str
    known: bool = True


def chunk(wanted: Wanted) -> Stage:
    title = "cut the documents into passages"
    if not wanted.documents:
        return Stage("chunk", title, skip=f"the passages are given: {wanted.passages}")
    found = wanted.out / "documents.json"
    pretrained = {name: wanted.setting(name) for name in MODELS if not is_new(wanted.setting(name))}
    words: Words = ("chunk", *wanted.documents, "--out", str(wanted.passages), *flags(pretrained))
    words += (*texts("chunk", wanted), "--json", str(found), *further("chunk", wanted))
    return Stage("chunk", title, words, wanted.documents, (wanted.passages,), always=True, partial=found)


def questions(wanted: Wanted) -> Stage:
    title = "write questions about the passages"
    if wanted.rows:
        return Stage("questions", title, skip=f"the questions are given: {wanted.rows}")
    writer = wanted.writer or wanted.setting("generator")
    words: Words = ("qa-gen", str(wanted.passages), "--generator", writer, *models(wanted, "retriever"))
    words += ("--out", str(wanted.questions), *caches("qa-gen", wanted), *texts("qa-gen", wanted))
    words += ("--rejected", str(wanted.out / "rejected.jsonl"), "--json", str(wanted.filters))
    words += further("qa_gen", wanted)
    inputs = (str(wanted.passages), writer, wanted.setting("retriever"))
    return Stage("questions", title, words, inputs, (wanted.questions,), ranks=wanted.ranks)


def split(wanted: Wanted) -> Stage:
    fraction = wanted.setting("eval_fraction")
    given = {name: value for name, value in (wanted.given or {}).items() if name in COLUMNS | {"on_bad_row"}}
    words: Words = ("split", str(wanted.questions), "--corpus", str(wanted.passages))
    words += ("--out", str(wanted.train_rows.parent))
    inputs: Words = (str(wanted.questions), str(wanted.passages))
    if own := wanted.setting("eval_data"):
        words, inputs = (*words, "--eval_data", own), (*inputs, own)
    elif fraction is not None:
        words += ("--eval_fraction", f"{fraction:g}")
    words += (*flags(given), *(("--ignore_labels",) if wanted.label_free else ()))
    return Stage("split", "hold documents out", words, inputs, (wanted.train_rows, wanted.row_counts))


def audit(wanted: Wanted) -> Stage:
    title = "ask whether the language model can teach the retriever"
    way = way_of(wanted, audited=False)
    if way.name == LABELS:
        return Stage("audit", title, skip=f"not needed: {way.why}")
    words: Words = ("audit", "--data", str(wanted.train_rows), "--corpus", str(wanted.passages))
    words += (*models(wanted), *texts("audit", wanted), *caches("audit", wanted), "--json", str(wanted.audit))
    words += (("--ignore_labels",) if wanted.rows else ()) + further("audit", wanted)
    inputs = (str(wanted.train_rows), str(wanted.passages), *both_models(wanted))
    return Stage("audit", title, words, inputs, (wanted.audit,), ranks=wanted.ranks)


def train(wanted: Wanted) -> Stage:
    """Training, with the index and the evaluation before and after."""
    way = way_of(wanted)
    recipe = wanted.recipe or RECIPES[way.name]
    words: Words = ("train", "--config", recipe, "--train_data", str(wanted.train_rows))
    words += ("--corpus", str(wanted.passages))
    inputs = [str(wanted.train_rows), str(wanted.passages), *both_models(wanted)]
    if wanted.eval_rows.exists() or not wanted.row_counts.exists():
        words += ("--eval_data", str(wanted.eval_rows))
        inputs.append(str(wanted.eval_rows))
    else:
        words += ("--eval_fraction", "0")
    own = {} if wanted.recipe or way.name != PAIRS else dict(PAIRS_ALONE)
    if way.name == LABELS and not is_new(wanted.setting("generator")) and not wanted.recipe:
        own["generator_learning_rate"] = f"{PRETRAINED_RATE:g}"
    given = wanted.given or {}
    left_out = {"eval_data", "corpus", "eval_fraction", "teacher_cache", "vector_cache", *COLUMNS}
    settings = own | {name: value for name, value in given.items() if name not in left_out}
    if way.name == PAIRS and not wanted.recipe:
        settings.pop("generator")  # nothing of it is read
    if way.name == FREE or "teacher_cache" in given:
        words += ("--teacher_cache", wanted.scores)
    words += (*caches("train", wanted, teacher=False), "--output_dir", str(wanted.run), "--resume", "auto")
    words += flags(settings)
    title = {FREE: "train on the language model's likelihoods", LABELS: "train on the labels of the rows"}
    of_pairs = "train on the questions and their source passages"
    outputs = (wanted.run / "results.json", wanted.run / "manifest.json")
    said = f"{title.get(way.name, of_pairs)}, index, evaluate ({way.why})"
    return Stage("train", said, words, tuple(inputs), outputs, ranks=wanted.ranks)


def index(wanted: Wanted) -> Stage:
    """With --keep_model: the trained retriever's index of the passages as they are now."""
    if not (wanted.run / "manifest.json").is_file():
        raise UserError("--keep_model: no trained run is here", found=wanted.run, fix="leave --keep_model out")
    words: Words = ("index", "--run", str(wanted.run), "--corpus", str(wanted.passages), *caches("index", wanted))
    inputs = (str(wanted.passages), str(wanted.run / "manifest.json"))
    outputs = (wanted.run / "index" / "manifest.json",)
    return Stage("index", "bring the index up to date", words, inputs, outputs, ranks=wanted.ranks)


STAGES: dict[str, Callable[[Wanted], Stage]] = {
    "chunk": chunk,
    "questions": questions,
    "split": split,
    "audit": audit,
    "train": train,
    "index": index,
}
ORDER = ("chunk", "questions", "split", "audit", "train")
WITH_KEPT_MODEL = ("chunk", "index")


def way_of(wanted: Wanted, audited: bool = True) -> Way:
    """How the retriever is to be trained: by labels where all of the user's rows have some, else as the audit says.
    audited: False before the audit. Raises RunError where the audit advises against the only way that is left."""
    counts = read(wanted.row_counts)
    if wanted.rows and not wanted.label_free:
        named = {name: value for name, value in (wanted.given or {}).items() if name in COLUMNS}
        if counts is None and all_labelled(wanted.rows, tuple(named.items())) is not False:
            return Way(LABELS, "if all rows have labels", known=False)
        if counts is not None and counts["train"]["labelled"] == counts["train"]["rows"]:
            return Way(LABELS, "all rows have labels")
    advice = ((read(wanted.audit) or {}).get("verdict") or {}) if audited else {}
    if not advice:
        return Way(FREE, "if the audit says train", known=False)
    said = f"the audit says {advice['advice']}"
    if advice["advice"] == "train":
        return Way(FREE, said)
    if not wanted.rows:
        return Way(PAIRS, f"{said}, so the likelihoods do not teach")
    if wanted.force:
        return Way(FREE, f"{said}; --force")
    raise RunError(
        "the audit advises against training, and the rows have no labels to train on",
        found=advice["lines"][0],
        expected="a language model that tells a passage with the answer from one without",
        fix="a larger --generator, rows with labelled passages (positives or positive_ids), or --force",
    )


@cache
def all_labelled(rows_file: str, columns: tuple[tuple[str, Any], ...]) -> bool | None:
    """Have all of the user's rows labels, before the stage that counts them? None where that cannot be told yet: labels
    by id need the passages. columns: the `--*_column` settings that were given. Read once for all stages."""
    from ds_rag.config import build
    from ds_rag.data.bad_rows import Reading
    from ds_rag.data.data_settings import columns_of
    from ds_rag.data.formats import scan_rows

    try:
        rows, _ = scan_rows(rows_file, columns_of(build(dict(columns)).data), "--rows", False, False, Reading())
    except UserError:
        return None
    return all(row.positives for row in rows) if rows else None


def read(file: Path) -> dict[str, Any] | None:
    """What an earlier stage wrote; None where it has not."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def models(wanted: Wanted, *names: str) -> tuple[str, ...]:
    """The flags of the models that training begins with."""
    return flags({name: wanted.setting(name) for name in names or MODELS})


def is_new(model: str) -> bool:
    """Does it start untrained, from a configuration?"""
    return model.startswith("config:")


def both_models(wanted: Wanted) -> tuple[str, str]:
    return wanted.setting("retriever"), wanted.setting("generator")


def texts(command: str, wanted: Wanted) -> tuple[str, ...]:
    """The flags of TEXTS that were given or that the recipe has, and that the command knows."""
    settings = wanted.settings(LABEL_FREE)
    return flags({name: settings[name] for name in TEXTS if name in settings and name in accepted(command)})


def caches(command: str, wanted: Wanted, teacher: bool = True) -> tuple[str, ...]:
    """The folders of what was computed once, for a command that knows them."""
    folders = {"teacher_cache": wanted.scores} if teacher else {}
    folders["vector_cache"] = wanted.vectors
    return flags({name: folder for name, folder in folders.items() if name in accepted(command)})


def further(name: str, wanted: Wanted) -> tuple[str, ...]:
    return (wanted.more or {}).get(name, ())


@cache
def accepted(command: str) -> frozenset[str]:
    """The settings that a command takes as flags."""
    from ds_rag.commands.cli import parser_of

    return frozenset(action.dest for action in parser_of(command)._actions)
