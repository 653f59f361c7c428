"""Checks that a resumed run is the run of its checkpoint: compares the facts in its manifest with those of this
start."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import ds_rag
from ds_rag.config import FIXED, INDEX, LENGTH, ON_RESUME, OWNER, RunConfig
from ds_rag.config.deepspeed_config.keys import one_below_another
from ds_rag.config.objectives import CANDIDATES_FROM
from ds_rag.engines.setup import read_files
from ds_rag.index.building import hash_tokens
from ds_rag.index.store import hash_model
from ds_rag.models.adapters import base_folder, has_adapters
from ds_rag.models.hub_models import folder_of
from ds_rag.run import checkpoint
from ds_rag.run.assemble import Parts
from ds_rag.run.checkpoint import TrainState
from ds_rag.runtime import atomic_folders, collectives, json_files
from ds_rag.runtime.errors import UserError


def run_facts(config: RunConfig, parts: Parts) -> dict[str, Any]:
    """The facts about a run that a checkpoint's manifest contains. All ranks call it together."""
    return {
        "global_batch": parts.loader.global_batch,
        "per_device_batch": parts.loader.batch,
        "data": data_hash(parts),
        "evaluation": evaluation_hash(parts),
        "unsaved": collectives.from_first(unsaved_weights(config, parts) if collectives.rank() == 0 else None),
        "prompt": parts.prompt is not None,
        "config": config.flat(),
        "named": config.named,
        "versions": {
            "ds_rag": ds_rag.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def data_hash(parts: Parts) -> str:
    """A hash of the training rows and passages as token ids: it covers texts, order, tokenizers and lengths."""
    tokens, digest = parts.loader.tokens, hashlib.sha256()
    tables = (tokens.queries, tokens.passages, tokens.generator_queries, tokens.generator_passages)
    for table in (*tables, tokens.generator_answers):
        digest.update(b"none" if table is None else hash_tokens(table).encode())
    for row in parts.loader.rows:
        digest.update(repr((row.positives, row.own)).encode())
        if row.scores:
            digest.update(repr(sorted(row.scores.items())).encode())
    return digest.hexdigest()


def evaluation_hash(parts: Parts) -> str:
    """A hash of the held-out rows, which decide the best step."""
    digest = hashlib.sha256()
    for row in parts.data.evaluation:
        digest.update(repr((row.query, row.answers, row.positives)).encode())
    return digest.hexdigest()


def unsaved_weights(config: RunConfig, parts: Parts) -> dict[str, str]:
    """Hashes of the weights that checkpoints do not contain: those of a frozen model or of a frozen side of the
    retriever, and of the base of adapters."""
    found, frozen = {}, {"retriever"} if config.model.train_side == "query" else set()
    for name, module in parts.engines.modules.items():
        source = getattr(config.model, name)
        unsaved = name in frozen or name not in parts.engines.learning or has_adapters(module)
        if not source.startswith("config:") and unsaved:
            found[name] = hash_model(base_folder(folder_of(source, f"--{name}"), f"--{name}"))
    return found


def fit_batch(folder: Path, config: RunConfig, say: Callable[[str], None]) -> None:
    """Adapts gradient accumulation to the number of ranks, so that a step has as many rows as in the checkpoint's run,
    unless a flag or a DeepSpeed file sets it.

    Raises UserError if the rows of a step cannot be split evenly among the ranks.
    """
    saved = (atomic_folders.read_manifest(folder) or {}).get("global_batch")
    optim, world, key = config.optim, collectives.world(), "gradient_accumulation_steps"
    files = read_files(config)  # numbers in them override the settings
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
    most = saved // unit  # ranks; with free accumulation fewer are possible
    sizes = [n for n in ([most] if fixed else range(1, most + 1)) if n and saved % (unit * n) == 0]
    raise UserError(
        f"{folder}: a step of its run has {saved} rows",
        found=f"{batch} a rank and micro-batch x {optim.gradient_accumulation_steps} micro-batches x {world} ranks",
        expected=f"a product of {saved}: with {unit} a rank, {' | '.join(map(str, sizes)) or 'no'} ranks",
        fix="another number of ranks, or --per_device_train_batch_size",
    )


def fit_length(folder: Path, config: RunConfig, say: Callable[[str], None]) -> None:
    """Takes warm-up and epochs from a checkpoint that was written before there was `--warmup_ratio`, unless a flag sets
    them: the recipes that come with ds_rag had other values then."""
    then = (atomic_folders.read_manifest(folder) or {}).get("config")
    if not isinstance(then, dict) or "warmup_ratio" in then:
        return
    optim, kept = config.optim, []
    steps, epochs = then.get("warmup_steps"), then.get("num_train_epochs")
    if isinstance(steps, int) and not {"warmup_steps", "warmup_ratio"} & config.flags:
        kept += [f"--warmup_steps {steps}"] * bool(steps != optim.warmup_steps or optim.warmup_ratio)
        optim.warmup_steps, optim.warmup_ratio = steps, 0.0
    if isinstance(epochs, float) and "num_train_epochs" not in config.flags and epochs != optim.num_train_epochs:
        kept.append(f"--num_train_epochs {epochs:g}")
        optim.num_train_epochs = epochs
    if kept:
        say(f"note: {' '.join(kept)}, as in the checkpoint")


def literal(files: list[dict[str, Any]], key: str) -> int | None:
    """The number that a DeepSpeed file gives for `key`; None if all say "auto" or nothing. (Two files that disagree are
    an error of assembly.)"""
    return next((value for raw in files if isinstance(value := raw.get(key), int)), None)


def fixed_settings(config: RunConfig, prompt: bool) -> set[str]:
    """The settings that must be the same in a resumed run as in its checkpoint. Rows per step (`fit_batch`), the data
    (`run_facts`) and the best step (`fit_best`) have rules of their own. prompt: whether the run has a prompt."""
    from_index = CANDIDATES_FROM[config.objective.candidates_from].index
    fixed = {key for key, rule in ON_RESUME.items() if rule == FIXED or (rule == INDEX and from_index)}
    return fixed if prompt else fixed - {"prompt_version"}


def check_unchanged(folder: Path, config: RunConfig, now: dict[str, Any], say: Callable[[str], None]) -> None:
    """Raises UserError if rows, tokenizers, settings or frozen weights differ from the checkpoint's; with
    `--resume_changed` prints a warning instead. now: the `run_facts` of this start."""
    then = atomic_folders.read_manifest(folder) or {}
    if "config" not in then:
        return
    check_facts(folder, then)
    then["config"].setdefault("prompt_version", "1")  # checkpoints from before this setting existed
    fixed = fixed_settings(config, now["prompt"])
    wrong = [
        f"--{key}: {then['config'][key]!r} then, {value!r} now"
        for key, value in now["config"].items()
        if key in then["config"] and key in fixed and then["config"][key] != value
    ]
    if then["data"] != now["data"]:
        wrong.append("training rows, passages, tokenizers or lengths: the token ids differ")
    if then.get("evaluation", now["evaluation"]) != now["evaluation"]:
        wrong.append("held-out rows: they differ")
    for name, weights in now["unsaved"].items():
        if then.get("unsaved", {}).get(name, weights) != weights:
            wrong.append(f"--{name}: the weights in that folder have changed, and checkpoints do not contain them")
    if then["global_batch"] != now["global_batch"]:
        wrong.append(f"rows a step: {then['global_batch']} then, {now['global_batch']} now")
    for key in sorted(key for key, rule in ON_RESUME.items() if rule == LENGTH):
        if then["config"].get(key) != now["config"][key]:
            say(f"note: --{key} {then['config'].get(key)} then, {now['config'][key]} now: the learning rate follows it")
    if now["per_device_batch"] != then["per_device_batch"] and config.objective.pool == "rank":
        say("note: another micro-batch size per rank changes the pool of candidates, and so the objective")
    if not wrong:
        return
    if config.run.resume_changed:
        say("warning: resumed although the following has changed:")
        for line in wrong:
            say(f"    - {line}")
        return
    raise UserError(
        f"{folder}: the checkpoint of another run than this one",
        found=one_below_another(wrong),
        expected="the data, tokenizers, weights and settings that it was saved with",
        fix="restore them, or --resume_changed to resume all the same",
    )


def check_facts(folder: Path, then: dict[str, Any]) -> None:
    """Raises UserError if a manifest, of another version perhaps, lacks a fact that is compared here."""
    file = folder / atomic_folders.MANIFEST
    kinds: dict[str, Any] = {"config": dict, "data": str, "global_batch": int, "per_device_batch": int}
    kinds |= {name: dict for name in ("versions", "unsaved", "named") if name in then}
    for name, kind in kinds.items():
        if not json_files.fits(then.get(name), kind):
            raise json_files.wrong_type(file, name, then.get(name), kind, "the version of ds_rag that wrote it")
    by = json_files.version_in(then)
    if json_files.is_newer(by):
        json_files.check_known(then["config"], OWNER, file, by)


def fit_best(state: TrainState, folder: Path, run: Path, now: dict[str, Any], say: Callable[[str], None]) -> None:
    """Forgets the best step so far if it cannot be compared with later ones: it was judged by another metric, on other
    rows, or in another run. folder: the checkpoint; run: the folder of the resumed run; now: its `run_facts`."""
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
