"""Opening what was saved: a run's folder, or plain model folders, for evaluation, indexing and questions."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from ds_rag.config import DataConfig, RunConfig, build
from ds_rag.config.flags import settings_of
from ds_rag.data.prompt import Prompt, make_prompt
from ds_rag.models.from_settings import open_generator, open_pair, open_retriever
from ds_rag.models.generator import Generator
from ds_rag.models.retriever import Retriever
from ds_rag.run import config_and_results, export
from ds_rag.runtime import json_files
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.library_messages import quiet_libraries

OF_ITS_ROWS = {"corpus", "max_eval_samples", "on_bad_row", "folds", "fold", "eval_fraction"} | {
    f.name for f in fields(DataConfig) if f.name.endswith("_column")
}

# Flags of data, models and evaluation that training alone reads.
OF_TRAINING = {
    *(
        "train_data",
        "max_train_samples",
        "eval_fraction",
        "fold_corpus",
        "assume_first_positive",
        "encoders",
        "freeze",
        "gradient_checkpointing",
    ),
    *("lora", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "learn_temperature"),
    *("refresh_index", "refresh_mode", "refresh_staleness", "refresh_fraction"),
    *("metric_for_best_model", "load_best_model_at_end", "early_stopping_patience"),
}


@dataclass
class Saved:
    """Models with the configuration they are used under; `run` is None for plain folders."""

    run: Path | None
    config: RunConfig
    retriever: Retriever
    generator: Generator | None
    prompt: Prompt | None


def open_saved(args: argparse.Namespace, hashes: bool = True) -> Saved:
    """The models that the arguments name. A run's own configuration holds where no flag says otherwise. All ranks
    together.

    hashes: a run's files are held against those, not against their sizes alone (1 s a GB). Raises UserError.
    """
    quiet_libraries()
    given = settings_of(args)
    if idle := sorted(OF_TRAINING & set(given)):
        raise UserError(
            "settings of training, which have no effect here",
            found=", ".join(f"--{name}" for name in idle),
            fix="leave them out" + (" (--data FILE names the rows)" if "train_data" in idle else ""),
        )
    if args.run:
        run = Path(args.run)
        manifest = export.ready(run, hashes)
        if not (run / json_files.CONFIG).is_file() or not (run / "retriever").is_dir():
            raise UserError("--run: not a finished run", found=run, expected="config.json and retriever/ in it")
        if clash := {"retriever", "generator"} & set(given):
            raise UserError("--run together with model folders", found=", ".join(f"--{c}" for c in sorted(clash)))
        values = config_and_results.configuration(run)
        if "eval_data" in given:  # other rows: what belonged to the run's own does not hold for them
            values = {k: v for k, v in values.items() if k not in OF_ITS_ROWS}
        values.setdefault("prompt_version", "1")  # runs that do not say are of the time before
        config = build(values | given)
        retriever, generator = open_pair(run, config.model, config.data, set(given))
        if export.ready(run, hashes=False) != manifest:
            raise UserError(f"{run}: another job has just written this run again", fix="the same command again")
    else:
        if "retriever" not in given:
            raise UserError("no models", expected="--run RUN, or --retriever FOLDER (and --generator FOLDER)")
        for name in ("retriever", "generator"):  # its tokenizer would be trained, on nothing, and written somewhere
            if str(given.get(name, "")).startswith("config:"):
                raise UserError(f"--{name} {given[name]}: a new model", expected="the folder of one that was saved")
        run, config = None, build(given)
        nothing: list[str] = []
        retriever = open_retriever(config.model, config.data, lambda: nothing, Path("."))
        has_generator = "generator" in given
        generator = open_generator(config.model, lambda: nothing, Path(".")) if has_generator else None
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device)
    for module in (retriever, generator):
        if module is not None:
            module.eval().requires_grad_(False).to(device)
    prompt = make_prompt(config.model, generator.tokenizer, generator.max_length) if generator else None
    return Saved(run, config, retriever, generator, prompt)
