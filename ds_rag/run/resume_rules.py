"""Is it the same run that goes on? What a checkpoint says of its run, held against the one that is starting."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import ds_rag
from ds_rag.config import OWNER, RunConfig
from ds_rag.config.deepspeed_config.keys import listed
from ds_rag.engines.setup import read_files
from ds_rag.index.building import hash_tokens
from ds_rag.index.store import hash_model
from ds_rag.models.adapters import base_folder, has_adapters
from ds_rag.run import checkpoint
from ds_rag.run.assemble import Parts
from ds_rag.run.checkpoint import TrainState
from ds_rag.runtime import atomic_folders, collectives, json_files
from ds_rag.runtime.errors import UserError

# What may differ and leaves the mathematics as it was: where and how often things are written, how much is done at
# once, and in which pieces. (The batch's own rule is `fit_batch`'s; how long the run is, the note's.)
FREE = {"output_dir", "resume", "resume_changed", "save_steps", "save_total_limit", "report_to", "debug", "corpus"}
FREE |= {"train_data", "eval_data", "max_eval_samples"}  # what is in them counts (`run_facts`), not where they lie
FREE |= {"deepspeed", "deepspeed_retriever", "deepspeed_generator", "memory_budget", "micro_cells", "retriever_chunk"}
FREE |= {"gradient_checkpointing", "per_device_train_batch_size", "gradient_accumulation_steps", "collective_timeout"}
FREE |= {"per_device_eval_batch_size", "index_shards", "top_k", "decode", "max_new_tokens", "eval_answers"}
FREE |= {"metric_for_best_model", "load_best_model_at_end", "early_stopping_patience"}  # `fit_best`
FREE |= {"max_bad_steps", "detect_collapse", "on_bad_row"}
# What an index is and when it is made: free where rows do not take their candidates from it.
OF_INDEX = {"refresh_index", "refresh_mode", "refresh_staleness", "refresh_fraction", "index_factory"}
LENGTH = {"max_steps", "num_train_epochs"}


def run_facts(config: RunConfig, parts: Parts) -> dict[str, Any]:
    """What the run is, for a checkpoint's manifest. A collective."""
    return {
        "global_batch": parts.loader.global_batch,
        "per_device_batch": parts.loader.batch,
        "data": data_hash(parts),
        "evaluation": evaluation_hash(parts),
        "unsaved": collectives.from_first(unsaved_weights(config, parts) if collectives.rank() == 0 else None),
        "prompt": parts.prompt is not None,
        "config": config.flat(),
        "versions": {
            "ds_rag": ds_rag.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def data_hash(parts: Parts) -> str:
    """Of the training rows and passages as the models read them: texts, order, tokenizers and lengths at once."""
    tokens, digest = parts.loader.tokens, hashlib.sha256()
    tables = (tokens.queries, tokens.passages, tokens.generator_queries, tokens.generator_passages)
    for table in (*tables, tokens.generator_answers):
        digest.update(b"none" if table is None else hash_tokens(table).encode())
    for row in parts.loader.rows:
        digest.update(repr((row.positives, row.own)).encode())
    return digest.hexdigest()


def evaluation_hash(parts: Parts) -> str:
    """Of the held-out rows, by which the best step is found."""
    digest = hashlib.sha256()
    for row in parts.data.evaluation:
        digest.update(repr((row.query, row.answers, row.positives)).encode())
    return digest.hexdigest()


def unsaved_weights(config: RunConfig, parts: Parts) -> dict[str, str]:
    """Hashes of the weights that no checkpoint holds: of a frozen model's folder, and of the base under adapters."""
    found = {}
    for name, module in parts.engines.modules.items():
        source = getattr(config.model, name)
        if not source.startswith("config:") and (name not in parts.engines.learning or has_adapters(module)):
            found[name] = hash_model(base_folder(Path(source), f"--{name}"))
    return found


def fit_batch(folder: Path, config: RunConfig, say: Callable[[str], None]) -> None:
    """The same rows a step on this number of ranks: accumulation follows, where neither a flag nor a DeepSpeed file
    fixes it.

    Raises UserError where the ranks cannot share a step's rows evenly.
    """
    saved = (atomic_folders.read_manifest(folder) or {}).get("global_batch")
    optim, world, key = config.optim, collectives.world(), "gradient_accumulation_steps"
    files = read_files(config)  # what they say literally the run will adopt
    accumulation = literal(files, key)
    fixed = key in config.explicit or accumulation is not None
    batch = literal(files, "train_micro_batch_size_per_gpu") or optim.per_device_train_batch_size
    optim.per_device_train_batch_size = batch
    optim.gradient_accumulation_steps = accumulation or optim.gradient_accumulation_steps
    if saved is None or batch * optim.gradient_accumulation_steps * world == saved:
        return
    if not fixed and saved % (batch * world) == 0:
        optim.gradient_accumulation_steps = saved // (batch * world)
        say(f"note: {optim.gradient_accumulation_steps} micro-batches a step on {world} ranks: the same {saved} rows")
        return
    unit = batch * (optim.gradient_accumulation_steps if fixed else 1)
    most = saved // unit  # ranks; fewer do where accumulation can make up for them
    sizes = [n for n in ([most] if fixed else range(1, most + 1)) if n and saved % (unit * n) == 0]
    raise UserError(
        f"{folder}: a step of its run has {saved} rows",
        found=f"{batch} a rank and micro-batch x {optim.gradient_accumulation_steps} micro-batches x {world} ranks",
        expected=f"a product of {saved}: with {unit} a rank, {' | '.join(map(str, sizes)) or 'no'} ranks",
        fix="another number of ranks, or --per_device_train_batch_size",
    )


def literal(files: list[dict[str, Any]], key: str) -> int | None:
    """What a DeepSpeed file says of `key` other than "auto". (That two of them disagree assembly says.)"""
    return next((value for raw in files if isinstance(value := raw.get(key), int)), None)


def check_unchanged(folder: Path, config: RunConfig, now: dict[str, Any], say: Callable[[str], None]) -> None:
    """Raises UserError for other rows, another tokenizer or other settings than the checkpoint's; with
    `--resume_changed` says so instead. now: `run_facts`."""
    then = atomic_folders.read_manifest(folder) or {}
    if "config" not in then:
        return
    check_facts(folder, then)
    then["config"].setdefault("prompt_version", "1")  # checkpoints that do not say are of the time before
    free = FREE | LENGTH | (OF_INDEX if config.objective.candidates_from == "batch" else set())
    free |= set() if now["prompt"] else {"prompt_version"}
    wrong = [
        f"--{key}: {then['config'][key]!r} then, {value!r} now"
        for key, value in now["config"].items()
        if key in then["config"] and key not in free and then["config"][key] != value
    ]
    if then["data"] != now["data"]:
        wrong.append("training rows, passages, tokenizers or lengths: other tokens than then")
    if then.get("evaluation", now["evaluation"]) != now["evaluation"]:
        wrong.append("held-out rows: others than then")
    for name, weights in now["unsaved"].items():
        if then.get("unsaved", {}).get(name, weights) != weights:
            wrong.append(f"--{name}: other weights in that folder than then, and no checkpoint holds those")
    if then["global_batch"] != now["global_batch"]:
        wrong.append(f"rows a step: {then['global_batch']} then, {now['global_batch']} now")
    for key in sorted(LENGTH):
        if then["config"].get(key) != now["config"][key]:
            say(f"note: --{key} {then['config'].get(key)} then, {now['config'][key]} now: the learning rate follows it")
    if now["per_device_batch"] != then["per_device_batch"] and config.objective.pool == "rank":
        say("note: another micro-batch of a rank is another pool of candidates, and so another objective")
    if not wrong:
        return
    if config.run.resume_changed:
        say("warning: resumed although this has changed:")
        for line in wrong:
            say(f"    - {line}")
        return
    raise UserError(
        f"{folder}: of a run that was another",
        found=listed(wrong),
        expected="the data, tokenizers, weights and settings that it was saved with",
        fix="put them back, or --resume_changed to go on all the same",
    )


def check_facts(folder: Path, then: dict[str, Any]) -> None:
    """Raises UserError where a manifest does not say what is looked at here: another version's."""
    file = folder / atomic_folders.MANIFEST
    kinds: dict[str, Any] = {"config": dict, "data": str, "global_batch": int, "per_device_batch": int}
    kinds |= {name: dict for name in ("versions", "unsaved") if name in then}
    for name, kind in kinds.items():
        if not json_files.fits(then.get(name), kind):
            raise json_files.wrong_type(file, name, then.get(name), kind, "the version of ds_rag that wrote it")
    by = json_files.version_in(then)
    if json_files.is_newer(by):
        json_files.check_known(then["config"], OWNER, file, by)


def fit_best(state: TrainState, folder: Path, run: Path, now: dict[str, Any], say: Callable[[str], None]) -> None:
    """Forgets the best step so far where it cannot be held against those to come: judged by another metric or other
    rows, or kept by another run. folder: the checkpoint's; run: the run that goes on; now: `run_facts`."""
    then = atomic_folders.read_manifest(folder) or {}
    metric = "metric_for_best_model"
    why = ""
    if then.get("config", {}).get(metric, now["config"][metric]) != now["config"][metric]:
        why = f"it was by {then['config'][metric]}"
    elif then.get("evaluation", now["evaluation"]) != now["evaluation"]:
        why = "it was on other held-out rows"
    elif not checkpoint.is_of(run, folder):
        why = "it is another run's"
    if why and state.best_step is not None:
        say(f"note: the best step so far, {state.best_step}, is forgotten: {why}")
        state.best, state.best_step, state.evaluations_without_gain = None, None, 0
