"""Opens saved models for evaluation, indexing and questions: those of a run, or plain model folders."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ds_rag.config import DataConfig, RunConfig, build
from ds_rag.config.flags import settings_of
from ds_rag.config.names import NAMED
from ds_rag.data.prompt import Prompt, make_prompt
from ds_rag.models.from_settings import open_generator, open_pair, open_retriever
from ds_rag.models.generator import Generator
from ds_rag.models.hub_models import folder_of
from ds_rag.models.retriever import Retriever
from ds_rag.run import config_and_results, export
from ds_rag.run.moved_paths import located
from ds_rag.run.settle_names import as_paths, bases_of, settle_names
from ds_rag.runtime import collectives, json_files
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.library_messages import quiet_libraries

# Settings that describe the rows of a run: they do not apply to other rows.
OF_ITS_ROWS = {"corpus", "max_eval_samples", "on_bad_row", "folds", "fold", "eval_fraction"} | {
    f.name for f in fields(DataConfig) if f.name.endswith("_column")
}

# Of these, the settings that describe the run's corpus, in which other rows may be searched too (corpus_to_search.py).
OF_ITS_CORPUS = {"corpus", "document_column", "title_column", "place_column"}

# Settings of data, models and evaluation that only training uses.
OF_TRAINING = {
    *(
        "train_data",
        "max_train_samples",
        "eval_fraction",
        "fold_corpus",
        "assume_first_positive",
        "train_labels",
        "encoders",
        "train_side",
        "freeze",
        "gradient_checkpointing",
    ),
    *("lora", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "learn_temperature"),
    *("refresh_index", "refresh_mode", "refresh_staleness", "refresh_fraction"),
    *("metric_for_best_model", "load_best_model_at_end", "early_stopping_patience", "lexical_lines"),
}


BY_WORDS = "bm25"  # as --retriever: no model, passages are found by BM25 (a folder of this name: ./bm25)


@dataclass
class WithoutRetriever:
    """A generator, or None, that answers from passages which are found without a retriever."""

    config: RunConfig
    generator: Generator | None
    prompt: Prompt | None


@dataclass
class Saved:
    """Opened models, and the configuration to use them with. run: the run's folder; None for plain model folders.
    of_corpus: settings of the run's corpus that do not apply, as other rows than its own are named."""

    run: Path | None
    config: RunConfig
    retriever: Retriever
    generator: Generator | None
    prompt: Prompt | None
    of_corpus: Mapping[str, Any] = field(default_factory=dict)

    @property
    def retriever_folder(self) -> Path:
        """The folder of the retriever's weights."""
        return self.run / "retriever" if self.run else folder_of(self.config.model.retriever, "--retriever")


def open_saved(args: argparse.Namespace, hashes: bool = True) -> Saved:
    """Opens the models that the arguments name. The configuration is the run's own, overridden by flags. All ranks call
    it together.

    hashes: verify the run's files by hash, not only by size (1 s per GB). Raises UserError.
    """
    quiet_libraries()
    given = checked(args)
    of_corpus: dict[str, Any] = {}
    if args.run:
        run = Path(args.run)
        manifest = export.ready(run, hashes)
        if not (run / json_files.CONFIG).is_file() or not (run / "retriever").is_dir():
            raise UserError("--run: not a finished run", found=run, expected="config.json and retriever/ in it")
        own = {name for name in ("retriever", "generator") if (run / name).is_dir()}
        if clash := own & set(given):
            raise UserError("--run together with model folders", found=", ".join(f"--{c}" for c in sorted(clash)))
        refuse_new(given)
        values = config_and_results.configuration(run)
        values |= located(run, values)
        if "eval_data" in given:  # other rows than the run's
            of_corpus = {k: v for k, v in as_paths(values, given).items() if k in OF_ITS_CORPUS - set(given)}
            values = {k: v for k, v in values.items() if k not in OF_ITS_ROWS}
        values.setdefault("prompt_version", "1")  # runs from before this setting existed
        values.pop("vector_cache", None)  # the folder that this call names is meant, not that of the training
        config = build(as_paths(values, given) | given)
        settle_names(config, say, {*bases_of(run, config), *NAMED.keys() & given.keys()})
        retriever, generator = open_pair(run, config.model, config.data, set(given))
        if generator is None and "generator" in given:  # a retriever trained alone, and a generator to answer with it
            generator = open_generator(config.model, list, Path("."))
        if export.ready(run, hashes=False) != manifest:
            raise UserError(f"{run}: another job has just replaced this run's models", fix="run the command again")
    else:
        if "retriever" not in given:
            raise UserError("no models", expected="--run RUN, or --retriever FOLDER (and --generator FOLDER)")
        refuse_new(given)
        run, config = None, build(given)
        settle_names(config, say, NAMED.keys() & given.keys())
        retriever = open_retriever(config.model, config.data, list, Path("."))
        generator = open_generator(config.model, list, Path(".")) if "generator" in given else None
    retriever.eval().requires_grad_(False).to(device_of(args))
    return Saved(run, config, retriever, generator, ready(generator, config, args), of_corpus)


def refuse_new(given: Mapping[str, Any]) -> None:
    """Raises UserError for a new model: it has no tokenizer yet, and here are no texts to train one."""
    for name in ("retriever", "generator"):
        if str(given.get(name, "")).startswith("config:"):
            raise UserError(f"--{name} {given[name]}: a new model", expected="the folder of one that was saved")


def open_reader(args: argparse.Namespace) -> WithoutRetriever:
    """With `--retriever bm25`: the generator alone, where one is named. All ranks together. Raises UserError."""
    quiet_libraries()
    given = checked(args)
    if args.run:
        raise UserError(
            "--run together with --retriever bm25", fix=f"--generator {args.run}/generator in place of --run"
        )
    if "hybrid" in given:
        raise UserError("--hybrid together with --retriever bm25", fix="leave one of them out")
    config = build({name: value for name, value in given.items() if name != "retriever"})
    settle_names(config, say, NAMED.keys() & given.keys() - {"retriever"})
    generator = open_generator(config.model, list, Path(".")) if "generator" in given else None
    return WithoutRetriever(config, generator, ready(generator, config, args))


def say(text: str) -> None:
    """Prints, on rank 0."""
    Console(speaks=collectives.rank() == 0).say(text)


def checked(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given. Raises UserError for those of training."""
    given = settings_of(args)
    if idle := sorted(OF_TRAINING & set(given)):
        raise UserError(
            "settings that only training uses, which have no effect here",
            found=", ".join(f"--{name}" for name in idle),
            fix="leave them out" + (" (--data FILE names the rows)" if "train_data" in idle else ""),
        )
    return given


def device_of(args: argparse.Namespace) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device)


def ready(generator: Generator | None, config: RunConfig, args: argparse.Namespace) -> Prompt | None:
    """The generator on its device, without gradients; returns its prompt."""
    if generator is None:
        return None
    generator.eval().requires_grad_(False).to(device_of(args))
    return make_prompt(config.model, generator.tokenizer, generator.max_length)
